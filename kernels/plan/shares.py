"""Tiles in order of their kind, and shared out, for kernels that sum blocks of one kind."""

from __future__ import annotations

import itertools

import numpy as np
from jaxtyping import Int

from natjax.kernels.plan.blocks import Blocks
from natjax.kernels.plan.pattern import pattern_of

# What tiles are shared out in, for each head.
_SHARES = 512


def tiles_by_kind(blocks: Blocks) -> tuple[Int[np.ndarray, "tiles"], Int[np.ndarray, "begins"]]:
    """Tiles sorted by kind, and where each kind begins, with the number of tiles at the end."""
    kind = pattern_of(blocks).kind
    order = np.argsort(kind, kind="stable")
    first = np.searchsorted(kind[order], np.arange(kind.max() + 2))
    return order.astype(np.int32), first.astype(np.int32)


def tiles_in_shares(
    blocks: Blocks,
) -> tuple[Int[np.ndarray, "tiles"], Int[np.ndarray, "begins"], Int[np.ndarray, "shares"]]:
    """Tiles sorted by kind, where each share of them begins, and the kind of its tiles.

    A share is of one kind, and one tile unless there are more than `_SHARES`.
    """
    order, first = tiles_by_kind(blocks)
    most = -(-len(order) // _SHARES)
    begins = [np.arange(start, end, most) for start, end in itertools.pairwise(first)]
    kind = np.repeat(np.arange(len(begins)), [len(x) for x in begins])
    begin = np.append(np.concatenate(begins), len(order))
    return order, begin.astype(np.int32), kind.astype(np.int32)
