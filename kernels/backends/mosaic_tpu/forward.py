"""The forward kernel."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import pallas as pl

from natjax.kernels.backends.mosaic_tpu.maps import Groups, Images
from natjax.kernels.backends.mosaic_tpu.program import (
    COLUMNS_BY_COLUMNS,
    ROWS_BY_ROWS,
    Again,
    Copies,
    Program,
    Tile,
)
from natjax.kernels.backends.mosaic_tpu.softmax import Exponentials, Softmax

type Ref = Any


def forward(
    program: Program,
    query: Images | Groups,
    key: Images | Groups,
    value: Images | Groups,
    softmax: Softmax,
    out: Images | Groups,
    lse: Ref,
    keys: Ref,
    values: Ref,
) -> None:
    """The output of every query and its log-sum-exp, a row of lanes for each tile.

    Tiles go through each stage side by side: one alone would leave the core waiting for its
    products.
    """

    def logits(first: Any, tile: Tile) -> jax.Array:
        q = program.rows_beyond(tile, query.read_tile(first, tile.map, tile.rows))
        return program.product(program.slab(keys, tile), program.by_head(q), ROWS_BY_ROWS)

    def finish(first: Any, tile: Tile, e: Exponentials) -> None:
        lse[tile.image, pl.ds(tile.number, 1), :] = e.lse
        w = e.weights.astype(program.dtype)
        x = program.product(w, program.slab(values, tile), COLUMNS_BY_COLUMNS)
        out.write_tile(first, tile.map, tile.rows, program.own_lanes(x))

    def stages(first: Any, tiles: Sequence[Tile], *, is_careful: bool = False) -> None:
        products = [logits(first, tile) for tile in tiles]
        every = [
            softmax.exponentials(tile.kind, x, is_careful=is_careful)
            for tile, x in zip(tiles, products, strict=True)
        ]
        if not is_careful:
            softmax.check(every)
        for tile, e in zip(tiles, every, strict=True):
            finish(first, tile, e)

    softmax.begin()
    program.walk(
        stages,
        read=[query],
        copied=[Copies(key, keys), Copies(value, values)],
        written=[out],
        again=Again(softmax.has_failed, lambda: None, functools.partial(stages, is_careful=True)),
    )
