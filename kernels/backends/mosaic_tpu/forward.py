"""The forward kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from natjax.kernels.autodiff import LOG2_E
from natjax.kernels.backends.mosaic_tpu.maps import Groups, Images
from natjax.kernels.backends.mosaic_tpu.program import (
    COLUMNS_BY_COLUMNS,
    ROWS_BY_ROWS,
    Copies,
    Program,
    Tile,
)
from natjax.kernels.plan.pattern import HIDDEN

type Ref = Any


def forward(
    program: Program,
    query: Images | Groups,
    key: Images | Groups,
    value: Images | Groups,
    table: Ref,
    out: Images | Groups,
    lse: Ref,
    keys: Ref,
    values: Ref,
    *,
    scale: float,
) -> None:
    """The output of every query and its log-sum-exp, a row of lanes for each tile.

    Logits are in units of log2(e), so that exp2 is all they need. Tiles go through each stage side
    by side: one alone would leave the core waiting for its products.
    """

    def logits(first: Any, tile: Tile) -> jax.Array:
        q = program.by_head(query.read_tile(first, tile.map, tile.rows))
        return program.product(program.slab(keys, tile), q, ROWS_BY_ROWS)

    def weights(tile: Tile, x: jax.Array) -> jax.Array:
        added = table[tile.kind]
        # Selected and not only added to: nan in a key must not reach those that do not see it.
        x = jnp.where(added > HIDDEN / 2, x * (scale * LOG2_E) + added, HIDDEN)
        top = x.max(axis=0, keepdims=True)
        e = jnp.exp2(x - top)
        total = e.sum(axis=0, keepdims=True)
        lse[tile.image, pl.ds(tile.number, 1), :] = (top + jnp.log2(total)) * (1 / LOG2_E)
        return (e * (1 / total)).astype(program.dtype)

    def finish(first: Any, tile: Tile, w: jax.Array) -> None:
        x = program.product(w, program.slab(values, tile), COLUMNS_BY_COLUMNS)
        out.write_tile(first, tile.map, tile.rows, program.own_lanes(x))

    def stages(first: Any, tiles: Sequence[Tile]) -> None:
        products = [logits(first, tile) for tile in tiles]
        soft = [weights(tile, x) for tile, x in zip(tiles, products, strict=True)]
        for tile, w in zip(tiles, soft, strict=True):
            finish(first, tile, w)

    program.walk(
        stages, read=[query], copied=[Copies(key, keys), Copies(value, values)], written=[out]
    )
