"""What a kernel is compiled with: the same numbers as for any kernel that Triton compiles."""

from natjax.kernels.backends.pallas_triton.config import KernelConfig as KernelConfig
