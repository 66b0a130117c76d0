"""Exponentials of logits, without a maximum where none is needed.

A softmax is the same whatever is subtracted from the logits of a query. Subtracting their maximum
keeps exponentials from overflowing, and a selection keeps nan in a key from those that do not see
it. Both cost operations for each logit, and the tiles wait for the maximum. But exponentials of
common logits neither overflow nor vanish, and minus infinity is left of a hidden logit that it is
added to.

So kernels go over their tiles without either. Sums show where that went wrong: an overflow, logits
that are all far below zero, or nan in a key. If any did, the program goes over all tiles again,
with care (`natjax.kernels.backends.mosaic_tpu.program.Again`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from natjax.kernels.autodiff import LOG2_E

type Ref = Any

# The table's entry for a hidden logit.
HIDDEN = -jnp.inf
# Sums are good within 2 to the power of this, either way. float32 holds powers from -126 to 127, so
# what has vanished is less than a rounding error of the sum.
_RANGE = 80.0
# Maxima that even with care are not subtracted, so that what nan does elsewhere in a map changes no
# digit: with a few hundred keys, sums are within the range.
_NEAR = 64.0


class Exponentials(NamedTuple):
    """Exponentials of a tile's logits.

    Attributes:
      values: ``[keys, lanes]``, 2 to the power of the logits less ``shift``.
      total: ``[1, lanes]``, their sums.
      shift: what was subtracted; None for nothing.
    """

    values: jax.Array
    total: jax.Array
    shift: jax.Array | None

    @property
    def weights(self) -> jax.Array:
        """The softmax."""
        return self.values * (1 / self.total)

    @property
    def lse(self) -> jax.Array:
        """Log-sum-exp, ``[1, lanes]``."""
        log = jnp.log2(self.total)
        return (log if self.shift is None else self.shift + log) * (1 / LOG2_E)


@dataclasses.dataclass(frozen=True)
class Softmax:
    """How a kernel makes weights of logits.

    Attributes:
      table: what is added to the logits of each kind of tile, in units of log2(e), so that exp2 is
        all they need.
      failed: ``[1, lanes]`` in memory: not zero where a sum is out of range.
      scale: factor on the products.
    """

    table: Ref
    failed: Ref
    scale: float

    def begin(self) -> None:
        """Before the first tile of a program."""
        self.failed[...] = jnp.zeros_like(self.failed)

    def exponentials(self, kind: Any, products: jax.Array, *, is_careful: bool) -> Exponentials:
        """Of a tile.

        Args:
          kind: of the tile.
          products: of its queries and keys, ``[keys, lanes]``.
          is_careful: whether sums may be out of range otherwise.
        """
        added, factor, shift = self.table[kind], self.scale * LOG2_E, None
        if is_careful:
            top = _seen(added, products * factor + added).max(axis=0, keepdims=True)
            shift = jnp.where(jnp.abs(top) <= _NEAR, 0.0, top)
            # Subtracted from what is added, so that products are rounded as without it.
            x = _seen(added, products * factor + (added - shift))
        else:
            x = products * factor + added
        e = jnp.exp2(x)
        return Exponentials(e, e.sum(axis=0, keepdims=True), shift)

    def check(self, every: Iterable[Exponentials]) -> None:
        """Note whether any of the sums is out of range, or nan."""
        totals = [x.total for x in every]
        # A sum of them stands for the largest, since it is nan if any is.
        least, most = functools.reduce(jnp.minimum, totals), functools.reduce(jnp.add, totals)
        is_good = (least > 2**-_RANGE) & (most < 2**_RANGE)
        self.failed[...] = jnp.where(is_good, self.failed[...], 1.0)

    def has_failed(self) -> jax.Array:
        """Whether a sum was out of range since `begin`."""
        return jnp.max(self.failed[...]) > 0


def _seen(added: jax.Array, logits: jax.Array) -> jax.Array:
    """Logits, of which hidden ones are minus infinity even where a key is nan."""
    return jnp.where(added == HIDDEN, HIDDEN, logits)
