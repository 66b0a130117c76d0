"""Which calls the kernels take."""

from __future__ import annotations

import re
from typing import Any

import jax

from natjax.kernels import device
from natjax.kernels.spec import CallSpec, Op

NAME = "mosaic_gpu"
_DTYPES = ("bfloat16", "float16")
_HEAD_MULTIPLE = 16
_LARGEST_HEAD = 128
_OLDEST_JAX = (0, 12)
# Abstract devices tell their kind and not their compute capability.
HOPPER = re.compile(r"\b(H100|H200|H800|H20|GH200)\b")


def supports(op: Op, spec: CallSpec) -> None:
    """Check that the kernels take a call.

    Args:
      op: which op.
      spec: what its kernels are specialised for.

    Raises:
      NotImplementedError: they do not; the message says what would work.
    """
    if jax.__version_info__[:2] < _OLDEST_JAX:
        raise _refusal(f"needs jax 0.12 or later; got {jax.__version__}")
    _require_hopper()
    del op  # All have the same rules.
    if spec.dtype not in _DTYPES:
        raise _refusal(f"takes the dtypes {_DTYPES}; got {spec.dtype}")
    if spec.head_dim != spec.value_dim:
        raise _refusal(
            f"takes values as wide as keys; got head sizes of {spec.head_dim} and {spec.value_dim}"
        )
    if spec.head_dim % _HEAD_MULTIPLE or spec.head_dim > _LARGEST_HEAD:
        raise _refusal(
            f"takes head sizes that are multiples of {_HEAD_MULTIPLE}, up to {_LARGEST_HEAD}; got "
            f"{spec.head_dim}"
        )


def _require_hopper() -> None:
    """Compiling for another GPU would end the process."""
    target = device.target("gpu")
    if not device.is_interpreted() and not _is_hopper(target):
        raise NotImplementedError(
            f'implementation "{NAME}" needs a Hopper GPU, such as an H100; got '
            f'{target.device_kind!r} ({target.platform}); use implementation="jax_triton" or '
            '"pallas_triton" on other NVIDIA GPUs, "xla" elsewhere, or set the environment '
            f"variable {device.INTERPRET}=1 to run the kernels interpreted, slowly, for tests"
        )


def _is_hopper(target: Any) -> bool:
    if target.platform != "gpu":
        return False
    capability = getattr(target, "compute_capability", None)
    if capability is None:
        return HOPPER.search(target.device_kind) is not None
    return str(capability) == "9.0"


def _refusal(reason: str) -> NotImplementedError:
    return NotImplementedError(
        f'implementation "{NAME}" {reason}; use implementation="jax_triton", "pallas_triton" or '
        '"xla"'
    )
