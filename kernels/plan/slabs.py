"""The smallest slabs of one axis that hold what each tile needs."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int


def fit_slabs(
    first: Int[np.ndarray, "T"], last: Int[np.ndarray, "T"], size: int, positions: int
) -> tuple[int, int]:
    """The smallest slabs that cover what each tile needs, ``[first, last)``.

    Returns:
      The offset from a tile's start to its slab's, and the slab's length ``halo``; slabs start at
      ``clip(tile start + offset, 0, positions - halo)``.
    """
    tile_start = np.arange(len(first)) * size
    # The largest offset comes first: fewer slabs are clipped at the left border.
    offsets = np.unique(first - tile_start)[::-1]
    for halo in range(int((last - first).max()), positions + 1):
        starts = np.clip(tile_start + offsets[:, None], 0, positions - halo)
        covers = ((starts <= first) & (last <= starts + halo)).all(1)
        if covers.any():
            return int(offsets[covers.argmax()]), halo
    raise AssertionError("a slab of the whole axis covers every tile")
