"""Which calls the kernels take."""

from __future__ import annotations

import math

import jax
from jax.sharding import AxisType

from natjax.kernels import device
from natjax.kernels.backends.mosaic_tpu.large.choice import prefers_large
from natjax.kernels.backends.mosaic_tpu.layout import LANES
from natjax.kernels.backends.mosaic_tpu.memory import layout_of
from natjax.kernels.spec import CallSpec

NAME = "mosaic_tpu"
_DTYPES = ("bfloat16", "float32")


def require_support(spec: CallSpec, heads: int) -> None:
    """Check that the kernels take a call.

    Args:
      spec: what the kernels are specialised for.
      heads: query heads.

    Raises:
      NotImplementedError: they do not; the message says what would work.
    """
    _require_device()
    _require_one_device()
    if spec.dtype not in _DTYPES:
        raise _refusal(f"takes the dtypes {_DTYPES}; got {spec.dtype}")
    largest = max(spec.head_dim, spec.value_dim)
    if largest > LANES:
        raise _refusal(f"takes head sizes up to {LANES}; got {largest}")
    if not (prefers_large(spec, heads) or _fits(spec, heads)):
        raise _refusal(
            "takes maps of which rows that see each other, and the table of biases, fit the memory "
            "of a core; and, without a bias, those whose plan does; got "
            f"{spec.neighborhood.shape} tokens of {spec.dtype}, "
            f"kernel_size={spec.neighborhood.kernel_size}, "
            f"{'a' if spec.has_bias else 'no'} bias"
        )


def _fits(spec: CallSpec, heads: int) -> bool:
    try:
        layout_of(spec, heads)
    except ValueError:
        return False
    return True


def _require_device() -> None:
    target = device.target("tpu")
    if not device.is_interpreted() and target.platform != "tpu":
        raise NotImplementedError(
            f'implementation "{NAME}" needs a TPU; got {target.device_kind!r} '
            f'({target.platform}); use implementation="xla", or set the environment variable '
            f"{device.INTERPRET}=1 to run the kernels interpreted, slowly, for tests"
        )


def _require_one_device() -> None:
    """Libtpu does not partition custom calls, so only what is for one device has kernels.

    The mesh of the context tells, of which axes that `jax.shard_map` has made manual do not count;
    without one, all devices might take part.
    """
    if device.is_interpreted():
        return
    mesh = jax.sharding.get_abstract_mesh()
    axes = zip(mesh.axis_sizes, mesh.axis_types, strict=True)
    shared = [size for size, kind in axes if kind != AxisType.Manual]
    devices = jax.device_count() if mesh.empty else math.prod(shared)
    if devices > 1:
        raise _refusal(f"runs on one device, or inside of jax.shard_map; got {devices} devices")


def _refusal(reason: str) -> NotImplementedError:
    return NotImplementedError(f'implementation "{NAME}" {reason}; use implementation="xla"')
