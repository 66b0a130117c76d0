"""What kernels have in common that Triton compiles: their settings, and what they need of a GPU."""
