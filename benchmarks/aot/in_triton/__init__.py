"""The kernels in Triton's language, compiled ahead of time; the command is in `__main__`."""
