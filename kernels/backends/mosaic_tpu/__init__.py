"""Implementation "mosaic_tpu": Pallas kernels for TPUs, compiled by Mosaic.

A program has whole maps in the memory of a core, with as many heads in the 128 lanes as there is
room for, and goes over them tile by tile (`layout`): neither logits nor anything else reaches the
device's memory but arguments and results. What is added to the logits is a table of what tiles look
like (`natjax.kernels.plan.pattern`). One kernel computes the output, and one all gradients; neither
needs atomic additions. Windows too large for that have kernels of their own (`large`).

No kernel has ever run on a TPU. They are compiled for TPUs, and what they compute is tested by
Pallas' interpreters on a CPU.

References:
  Hassani et al., *Faster Neighborhood Attention*, 2024 (fused neighborhood attention).
"""

from natjax.kernels.backends.mosaic_tpu.ops import attention as attention
from natjax.kernels.backends.mosaic_tpu.unfused.ops import av as av
from natjax.kernels.backends.mosaic_tpu.unfused.ops import qk as qk

__all__ = ["attention", "av", "qk"]
