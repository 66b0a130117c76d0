"""The TPU kernels, compiled for TPUs that are not here: what becomes of them."""
