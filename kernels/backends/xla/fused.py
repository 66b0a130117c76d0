"""The fused op of implementation "xla": tiles of queries against slabs of keys, in plain JAX."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from natjax.kernels import device
from natjax.kernels.backends.xla.layout import (
    key_boxes,
    merge_queries,
    place_keys,
    place_queries,
    query_boxes,
)
from natjax.kernels.backends.xla.penalty import Penalty
from natjax.kernels.backends.xla.tile import Tile
from natjax.kernels.backends.xla.tiles import choose_tiles
from natjax.kernels.backends.xla.walk import Boxes, Walk
from natjax.kernels.checks import accumulation_dtype, product_precision
from natjax.kernels.cross_scale import with_more_heads
from natjax.kernels.neighborhood import Neighborhood
from natjax.kernels.sharding.device_parts import on_device_parts
from natjax.kernels.weighting import Dropout


@dataclasses.dataclass(frozen=True, slots=True)
class Tiling:
    """What tiles are chosen by on a platform.

    Attributes:
      slab_overhead: cost of moving a key into a slab, in logits.
      logits_at_once: logits of a step, which has as many tiles as keep to it: on a CPU what caches
        hold, elsewhere what keeps the device busy.
      tiles_at_once: tiles of a step at most, since results are added one tile after the other, each
        an operation to compile.
    """

    slab_overhead: int
    logits_at_once: int
    tiles_at_once: int


# On a CPU by `python benchmarks/ops.py --sweep`, for TPUs by `python -m benchmarks.aot.tpu.tiling`.
TILINGS = {"cpu": Tiling(32, 2**19, 16), "tpu": Tiling(256, 2**19, 8)}
_ELSEWHERE = Tiling(64, 2**26, 32)
# The most logits of a tile, of all images and heads together, which bounds memory. Those of one
# image and head may always be the second number, since smaller tiles mostly move keys.
_LARGEST_TILE = 2**22
_ALWAYS_A_TILE = 2**14


@with_more_heads
@functools.partial(jax.jit, static_argnames=("neighborhood", "scale", "soft_cap"))
def attention(
    query: Float[Array, "B *X N D"],
    key: Float[Array, "B *Y M D"],
    value: Float[Array, "B *Y M Dv"],
    neighborhood: Neighborhood,
    *,
    rpb: Float[Array, "N *R"] | None,
    scale: float,
    additional_keys: Float[Array, "B E M D"] | None,
    additional_values: Float[Array, "B E M Dv"] | None,
    key_mask: Bool[Array, "B *Y"] | None = None,
    dropout: Dropout | None = None,
    soft_cap: float | None = None,
    part: Int[Array, "axes"] | None = None,
) -> tuple[Float[Array, "B *X N Dv"], Float[Array, "B *X N"]]:
    """See `natjax.kernels.backends.reference.attention`.

    An axis of the neighborhood may have several `origins`; ``part`` says which of them is in
    force along each axis.
    """
    attend = functools.partial(
        _attention, neighborhood=neighborhood, scale=scale, soft_cap=soft_cap
    )
    extra = None if additional_keys is None else (additional_keys, additional_values)
    mask = None if key_mask is None else key_mask[..., None, None]
    part = jnp.zeros(len(neighborhood.axes), jnp.int32) if part is None else part
    return on_device_parts(attend, (query, key, value, extra, mask, dropout), (rpb, part))


def _attention(
    query: Float[Array, "B *X N D"],
    key: Float[Array, "B *Y M D"],
    value: Float[Array, "B *Y M Dv"],
    extra: tuple[Float[Array, "B E M D"], Float[Array, "B E M Dv"]] | None,
    key_mask: Bool[Array, "B *Y 1 1"] | None,
    dropout: Dropout | None,
    shared: tuple[Float[Array, "N *R"] | None, Int[Array, "axes"]],
    *,
    neighborhood: Neighborhood,
    scale: float,
    soft_cap: float | None,
) -> tuple[Float[Array, "B *X N Dv"], Float[Array, "B *X N"]]:
    rpb, part = shared
    # Batch and heads are computed together. A batch whose size is not known counts as 1.
    batch = query.shape[0] if isinstance(query.shape[0], int) else 1
    problems = max(1, batch * query.shape[-2])
    most_logits = max(_LARGEST_TILE // problems, _ALWAYS_A_TILE)
    tiling = TILINGS.get(device.target().platform, _ELSEWHERE)
    tiles = choose_tiles(neighborhood, tiling.slab_overhead, most_logits)
    heads, dtype = (key.shape[-2], query.shape[-2] // key.shape[-2]), query.dtype
    queries, keys = query_boxes(tiles), key_boxes(tiles)
    penalty = Penalty(tiles, heads, rpb is not None)
    placed = place_queries(query, tiles)
    inputs: dict[str, tuple[Array, Boxes] | None] = {
        "query": (placed, queries),
        "key": (place_keys(key, tiles), keys),
        "value": (place_keys(value, tiles), keys),
        "part": _whole(part),
        "penalty": penalty.read(rpb, part, accumulation_dtype(dtype)),
        "key_mask": None if key_mask is None else (place_keys(key_mask, tiles), keys),
        "seeds": None if dropout is None else _whole(dropout.seeds),
        "extra_keys": None if extra is None else _whole(extra[0]),
        "extra_values": None if extra is None else _whole(extra[1]),
    }
    given = {name: x for name, x in inputs.items() if x is not None}
    count = math.prod(axis.count for axis in tiles)
    logits = problems * math.prod(axis.size * axis.halo for axis in tiles)
    tile = Tile(
        names=tuple(given),
        penalty=penalty,
        scale=scale,
        soft_cap=soft_cap,
        rate=0.0 if dropout is None else dropout.rate,
        precision=product_precision(dtype),
        num_tokens=neighborhood.num_tokens,
    )
    walk = Walk(
        function=tile,
        pull=tile.pull,
        reads=tuple(boxes for _, boxes in given.values()),
        writes=(queries, queries),
        outputs=(
            jax.ShapeDtypeStruct((*placed.shape[:-1], value.shape[-1]), dtype),
            jax.ShapeDtypeStruct((*placed.shape[:-1], 1), accumulation_dtype(dtype)),
        ),
        tiles=count,
        at_once=_divisor(count, min(tiling.logits_at_once // logits, tiling.tiles_at_once)),
    )
    out, lse = (merge_queries(x, tiles) for x in walk(*(x for x, _ in given.values())))
    return out, lse[..., 0]


def _whole(x: Array) -> tuple[Array, Boxes]:
    return x, Boxes.whole(x.ndim)


def _divisor(number: int, limit: int) -> int:
    """The largest divisor of ``number`` that is at most ``limit``, at least 1."""
    return next(n for n in range(max(1, min(number, limit)), 0, -1) if number % n == 0)
