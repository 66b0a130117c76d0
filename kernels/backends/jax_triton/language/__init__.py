"""The kernels, in Triton's language. Importing any module of it imports Triton."""
