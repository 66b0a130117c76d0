"""NATTEN's global switches and questions, answered for natjax."""

from __future__ import annotations

from typing import Any

import jax


def use_fused_na(mode: bool = True, **options: Any) -> None:
    """Does nothing: natjax' modules always use the fused op."""
    del mode, options


def disable_fused_na() -> None:
    """Does nothing: natjax' modules always use the fused op."""


def is_fna_enabled() -> bool:
    """True: natjax' modules always use the fused op."""
    return True


def has_fused_na() -> bool:
    """True: the fused ops run on every device."""
    return True


def has_cuda() -> bool:
    """Whether JAX computes on a GPU."""
    return jax.default_backend() == "gpu"


def has_half() -> bool:
    """True: every op takes float16."""
    return True


def has_bfloat() -> bool:
    """True: every op takes bfloat16."""
    return True


def use_deterministic_algorithms(mode: bool = True) -> None:
    """Does nothing: natjax is always deterministic."""
    del mode


def are_deterministic_algorithms_enabled() -> bool:
    """True: natjax is always deterministic."""
    return True


def use_kv_parallelism_in_fused_na(mode: bool = True) -> None:
    """Does nothing: it would make results depend on the order of additions."""
    del mode


def set_memory_usage_preference(pref: str = "default") -> None:
    """Does nothing but check: natjax' kernels take no memory that a preference could bound.

    Raises:
      ValueError: not one of NATTEN's preferences.
    """
    known = ("default", "strict", "unrestricted")
    if pref not in known:
        raise ValueError(f"pref must be one of {', '.join(known)}; got {pref!r}")


use_fna = use_fused_na
has_fna = has_fused_na
