"""Position biases of another window: bicubic interpolation of the table.

Where the published 11x11 weights come from the 7x7 ones, tables of 13x13 were resized to 21x21 in
this way; global attention needs it for maps of another size.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

# PyTorch's kernel. Keys' paper has -1/2 for the order of approximation; -3/4 is sharper.
_A = -0.75


def resize_rpb(
    rpb: Float[np.ndarray, "N H W"], size: tuple[int, int]
) -> Float[np.ndarray, "N {size[0]} {size[1]}"]:
    """Resize a position bias, as PyTorch's bicubic interpolation does by default.

    Cubic convolution with factor -3/4, sample points at the middles of the cells (no
    ``align_corners``), values beyond the border those at the border, no smoothing where it shrinks.
    Computed in float64; the table itself where the size is equal.

    Args:
      rpb: biases of all heads.
      size: new height and width.

    References:
      Keys, *Cubic convolution interpolation for digital image processing*, 1981.
    """
    if rpb.shape[1:] == size:
        return rpb
    rows, columns = (_weights(old, new) for old, new in zip(rpb.shape[1:], size, strict=True))
    exact = rows @ rpb.astype(np.float64) @ columns.T
    return exact.astype(rpb.dtype)


def _weights(old: int, new: int) -> Float[np.ndarray, "{new} {old}"]:
    """The matrix that resizes one axis."""
    centers = (np.arange(new) + 0.5) * old / new - 0.5
    weights = np.zeros((new, old))
    for offset in range(-1, 3):
        taps = np.floor(centers).astype(int) + offset
        values = _cubic(np.abs(centers - taps))
        np.add.at(weights, (np.arange(new), np.clip(taps, 0, old - 1)), values)
    return weights


def _cubic(x: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Keys' kernel at distances of at most 2."""
    near = ((_A + 2) * x - (_A + 3)) * x**2 + 1
    far = _A * (((x - 5) * x + 8) * x - 4)
    return np.where(x <= 1, near, far)
