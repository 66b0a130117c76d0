"""The kernels for Hopper, compiled for an H100 on a machine that has none."""
