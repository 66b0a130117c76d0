"""Which calls kernels take that Triton compiles."""

from __future__ import annotations

from typing import Any

from natjax.kernels import device
from natjax.kernels.spec import CallSpec

_DTYPES = ("bfloat16", "float16", "float32")
_LARGEST_HEAD = 256


def require(name: str, spec: CallSpec) -> None:
    """Check that kernels which Triton compiles take a call.

    Args:
      name: the implementation whose kernels they are.
      spec: what they are specialised for.

    Raises:
      NotImplementedError: they do not; the message says what would work.
    """
    _require_device(name)
    if spec.dtype not in _DTYPES:
        raise NotImplementedError(
            f'implementation "{name}" takes the dtypes {_DTYPES}; got {spec.dtype}; use '
            'implementation="xla"'
        )
    largest = max(spec.head_dim, spec.value_dim)
    if largest > _LARGEST_HEAD:
        raise NotImplementedError(
            f'implementation "{name}" takes head sizes up to {_LARGEST_HEAD}; got {largest}; use '
            'implementation="xla"'
        )


def _require_device(name: str) -> None:
    target = device.target("gpu")
    if device.is_interpreted() or _is_ampere_or_later(target):
        return
    raise NotImplementedError(
        f'implementation "{name}" needs an NVIDIA GPU, Ampere or later; got {target.device_kind!r} '
        f'({target.platform}); use implementation="xla", or set the environment variable '
        f"{device.INTERPRET}=1 to run the kernels interpreted, slowly, for tests"
    )


def _is_ampere_or_later(target: Any) -> bool:
    """Abstract devices tell their kind alone; older ones are refused when they are compiled for."""
    capability = getattr(target, "compute_capability", "8.0")
    is_nvidia = str(capability).replace(".", "", 1).isdigit()  # "9.0", or "gfx942" for AMD's
    return target.platform == "gpu" and is_nvidia and float(capability) >= 8
