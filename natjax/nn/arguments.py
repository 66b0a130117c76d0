"""Rules for arguments of modules and models; each message has name, rule and value."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from natjax.kernels import registry


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


def check_implementation(name: str | None) -> str | None:
    """Return the name of an implementation of the ops that there is, or None for the best.

    Raises:
      ValueError: there is none of that name.
    """
    return name if name is None else registry.canonical(name)


def given(options: dict[str, Any]) -> dict[str, Any]:
    """Without the options that are None, which stand for what a config has; lists as tuples."""
    return {name: _tuples(value) for name, value in options.items() if value is not None}


def _tuples(value: Any) -> Any:
    """Lists, at any depth, as the tuples that configs hold."""
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value
