"""Which calls the kernels take."""

from __future__ import annotations

from natjax.kernels import device
from natjax.kernels.backends.mosaic_tpu.large.choice import prefers_large
from natjax.kernels.backends.mosaic_tpu.layout import LANES
from natjax.kernels.backends.mosaic_tpu.memory import fits
from natjax.kernels.spec import CallSpec

NAME = "mosaic_tpu"
_DTYPES = ("bfloat16", "float32")
_LEAST_COLUMNS = 5


def require_support(spec: CallSpec, heads: int, *, is_unfused: bool = False) -> None:
    """Check that the kernels take a call.

    Args:
      spec: what the kernels are specialised for.
      heads: query heads.
      is_unfused: whether it is of an unfused op.

    Raises:
      NotImplementedError: they do not; the message says what would work.
    """
    _require_device()
    last = spec.neighborhood.axes[-1]
    columns = min(last.num_queries, last.num_keys)
    if columns < _LEAST_COLUMNS and not device.is_interpreted():
        raise _refusal(
            f"takes {_LEAST_COLUMNS} tokens or more along the last axis, since Mosaic does not "
            f"compile kernels of fewer; got {columns}"
        )
    if spec.dtype not in _DTYPES:
        raise _refusal(f"takes the dtypes {_DTYPES}; got {spec.dtype}")
    largest = max(spec.head_dim, spec.value_dim)
    if largest > LANES:
        raise _refusal(f"takes head sizes up to {LANES}; got {largest}")
    is_large = not is_unfused and prefers_large(spec, heads)
    if not (is_large or fits(spec, heads, is_unfused=is_unfused)):
        raise _refusal(
            "takes maps of which rows that see each other, the table of biases, and the weights of "
            "unfused ops fit the memory of a core; and, fused, those whose plan for large windows "
            "does; got "
            f"{spec.neighborhood.shape} tokens of {spec.dtype}, "
            f"kernel_size={spec.neighborhood.kernel_size}, "
            f"{'a' if spec.has_bias else 'no'} bias"
        )


def _require_device() -> None:
    target = device.target("tpu")
    if not device.is_interpreted() and target.platform != "tpu":
        raise NotImplementedError(
            f'implementation "{NAME}" needs a TPU; got {target.device_kind!r} '
            f'({target.platform}); use implementation="xla", or set the environment variable '
            f"{device.INTERPRET}=1 to run the kernels interpreted, slowly, for tests"
        )


def _refusal(reason: str) -> NotImplementedError:
    return NotImplementedError(f'implementation "{NAME}" {reason}; use implementation="xla"')
