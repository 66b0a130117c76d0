"""Whether a checkpoint is as it was written: its files, and the values read from them.

Sizes and checksums of files are checked before anything is read, so that a damaged file is named
instead of sending a reader of binary formats into it. Storage can also hand back values that are
well formed and wrong, so every item has a fingerprint, which does not depend on how it is sharded:
each array's bits, taken as integers, are summed modulo 2**32 with odd weights that depend on the
position. Any single changed value changes the sum, and since integer sums have no rounding, any
mesh gives the same.
"""

import json
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, UInt32

from natjax.train.files import write_whole

_CHUNK = 1 << 20


def write_sums(folder: Path, sums: Path) -> None:
    """Record every file under `folder` in the JSON file `sums`; replaced at once, never in part."""
    content = {str(path.relative_to(folder)): list(_sum(path)) for path in _files(folder)}
    sums.parent.mkdir(parents=True, exist_ok=True)
    write_whole(sums, json.dumps(content))


def find_damage(folder: Path, sums: Path) -> str | None:
    """Return what differs from the record, or None: nothing does, or there is no record.

    A run killed between writing a checkpoint and its record leaves it without one.
    """
    try:
        expected: dict[str, list[int]] = json.loads(sums.read_text())
    except (OSError, ValueError):
        return None
    for name, (size, crc) in expected.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if _sum(path) != (size, crc):
            return f"{name} is not as written"
    return None


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _sum(path: Path) -> tuple[int, int]:
    size = crc = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            size, crc = size + len(chunk), zlib.crc32(chunk, crc)
    return size, crc


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
