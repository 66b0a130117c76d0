"""The GPU kernels compiled for GPUs that are not here; see `benchmarks.aot.__main__`."""
