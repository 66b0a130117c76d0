"""The public ops: check the arguments once, then hand over to an implementation."""

from natjax.kernels.api.calls import Implementation as Implementation
from natjax.kernels.api.full import attention as attention
from natjax.kernels.api.fused import na1d as na1d
from natjax.kernels.api.fused import na2d as na2d
from natjax.kernels.api.fused import na3d as na3d
from natjax.kernels.api.unfused import na1d_av as na1d_av
from natjax.kernels.api.unfused import na1d_qk as na1d_qk
from natjax.kernels.api.unfused import na2d_av as na2d_av
from natjax.kernels.api.unfused import na2d_qk as na2d_qk
from natjax.kernels.api.unfused import na3d_av as na3d_av
from natjax.kernels.api.unfused import na3d_qk as na3d_qk
from natjax.kernels.merge import merge_attentions as merge_attentions
