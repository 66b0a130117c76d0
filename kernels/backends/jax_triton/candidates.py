"""The settings that are worth measuring on the present GPU."""

from natjax.kernels.backends.triton_common.candidates import candidates as candidates
from natjax.kernels.backends.triton_common.candidates import variants as variants
