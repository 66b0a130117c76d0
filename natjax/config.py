"""What the model configs share: fields, their checks, and the drop-path ramp."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Sequence
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Fields of every model.

    Attributes:
      mlp_ratio: hidden size of the MLPs in units of their channels.
      drop_path: stochastic depth rate of the last block; the first has 0, in between it is linear.
      dropout: dropout rate after the attention's projection and in the MLPs (0 in every paper).
      attn_dropout: dropout rate of the attention weights (0 in every paper).
      num_classes: outputs of the classifier; 0 for none.
      in_channels: channels of the images.
      input_size: height and width of the images the model was designed for.
      output_norms: whether ``features()`` normalises each map, as dense-prediction backbones do.
    """

    mlp_ratio: float = 4.0
    drop_path: float = 0.0
    dropout: float = 0.0
    attn_dropout: float = 0.0
    num_classes: int = 1000
    in_channels: int = 3
    input_size: int = 224
    output_norms: bool = False

    def __post_init__(self) -> None:
        for name in ("drop_path", "dropout", "attn_dropout"):
            check_rate(name, getattr(self, name))
        check_size("num_classes", self.num_classes, at_least=0)
        for name in ("in_channels", "input_size"):
            check_size(name, getattr(self, name))
        if not self.mlp_ratio > 0:
            raise ValueError(f"mlp_ratio must be positive; got {self.mlp_ratio!r}")

    def _set(self, **fields: Any) -> None:
        """Set checked fields; for ``__post_init__`` only."""
        for name, value in fields.items():
            object.__setattr__(self, name, value)


def check_size(name: str, value: Any, *, at_least: int = 1) -> int:
    """Return an integer that is large enough.

    Raises:
      ValueError: it is not.
    """
    rule = f"{name} must be an integer >= {at_least}; got {value!r}"
    try:
        if isinstance(value, bool) or operator.index(value) < at_least:
            raise ValueError(rule)
    except TypeError:
        raise ValueError(rule) from None
    return operator.index(value)


def check_rate(name: str, value: float) -> float:
    """Return a drop rate that is in ``[0, 1)``.

    Raises:
      ValueError: it is not.
    """
    if not 0 <= value < 1:
        raise ValueError(f"{name} must be a rate in [0, 1); got {value!r}")
    return value


def check_sizes(name: str, values: Any, length: int | None, per: str) -> tuple[int, ...]:
    """Return a sequence of positive integers of the right length (None: any but 0), as a tuple.

    Raises:
      ValueError: no sequence, another length, or an entry below 1.
    """
    is_sequence = isinstance(values, Sequence) and not isinstance(values, str)
    if not is_sequence or not values or len(values) != (length or len(values)):
        number = f"{length} " if length else ""
        raise ValueError(f"{name} must hold {number}integers (one per {per}); got {values!r}")
    return tuple(check_size(f"{name}[{i}]", value) for i, value in enumerate(values))


def check_heads(dim: int, num_heads: int) -> None:
    """Check that channels split into heads.

    Raises:
      ValueError: they do not.
    """
    if dim % num_heads:
        raise ValueError(f"channels must be a multiple of num_heads; got {dim} and {num_heads}")


def drop_path_rates(last: float, depth: int) -> list[float]:
    """Rates of all blocks: a linear ramp from 0 to ``last`` (exactly 0 for a single block).

    >>> drop_path_rates(0.2, 5)
    [0.0, 0.05, 0.1, 0.15000000000000002, 0.2]
    """
    return [last * i / max(1, depth - 1) for i in range(depth)]
