"""A checksum of arrays that does not depend on how they are sharded.

Storage can hand back values that are well formed and wrong. Each array's bits, taken as integers,
are summed modulo 2**32 with odd weights that depend on the position: any single changed value
changes the sum, and since integer sums have no rounding, any mesh gives the same.
"""

import zlib
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, UInt32

_UNSIGNED = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}
_MULTIPLIERS = (2654435761, 2246822519, 3266489917, 668265263, 374761393, 2869860233)


def fingerprint(tree: Any) -> int:
    """Return the checksum of all arrays of a tree, with their names, in [0, 2**32).

    Args:
      tree: Arrays of at most six axes and four bytes a value, sharded in any way.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    sums = jax.device_get(_checksums([leaf for _, leaf in leaves]))
    total = 0
    for (path, _), value in zip(leaves, sums, strict=True):
        name = jax.tree_util.keystr(path).encode()
        total = zlib.crc32(name + int(value).to_bytes(4, "little"), total)
    return total


@jax.jit
def _checksums(leaves: list[Array]) -> list[Array]:
    return [_checksum(leaf) for leaf in leaves]


def _checksum(values: Array) -> UInt32[Array, ""]:
    kind = _UNSIGNED[values.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(values, kind).astype(jnp.uint32)
    weights = jnp.ones(values.shape, jnp.uint32)
    for axis, multiplier in zip(range(values.ndim), _MULTIPLIERS, strict=False):
        place = jax.lax.broadcasted_iota(jnp.uint32, values.shape, axis)
        weights += 2 * jnp.uint32(multiplier) * place
    return jnp.sum(bits * weights, dtype=jnp.uint32)
