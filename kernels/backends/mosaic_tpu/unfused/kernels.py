"""The kernels of the unfused ops: logits and weighted sums, and the gradients of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from natjax.kernels.backends.mosaic_tpu.maps import Groups, Images
from natjax.kernels.backends.mosaic_tpu.program import (
    COLUMNS_BY_COLUMNS,
    PLAIN,
    ROWS_BY_ROWS,
    Copies,
    Program,
    Tile,
)
from natjax.kernels.backends.mosaic_tpu.unfused.slots import Slots

type Ref = Any
type Map = Images | Groups


def qk(
    program: Program,
    slots: Slots,
    query: Map,
    key: Map,
    table: Ref,
    logits: Map,
    keys: Ref,
    *,
    scale: float,
) -> None:
    """Logits of every query's window slots; ``table`` has what is added to them, if anything."""

    def products(first: Any, tile: Tile) -> jax.Array:
        q = program.by_head(query.read_tile(first, tile.map, tile.rows))
        x = program.product(program.slab(keys, tile), q, ROWS_BY_ROWS) * scale
        return x if table is None else x + table[tile.kind]

    def stages(first: Any, tiles: Sequence[Tile]) -> None:
        found = [products(first, tile) for tile in tiles]
        for turn, (tile, x) in enumerate(zip(tiles, found, strict=True)):
            logits.write_tile(first, tile.map, tile.rows, slots.of_slab(turn, tile, x))

    program.walk(stages, read=[query], copied=[Copies(key, keys)], written=[logits])


def qk_gradients(
    program: Program,
    slots: Slots,
    query: Map,
    key: Map,
    dlogits: Map,
    dquery: Map,
    dkey: Map,
    dtable: Ref,
    scratch: tuple[Ref, Ref],
    *,
    scale: float,
) -> None:
    """Gradients of queries, keys and of the table of biases, if there is one."""
    keys, dkeys = scratch
    if dtable is not None:

        @pl.when(program.is_first)
        def _() -> None:
            dtable[...] = jnp.zeros_like(dtable)

    def spread(first: Any, turn: int, tile: Tile) -> jax.Array:
        dx = slots.to_slab(turn, tile, _read(program, first, dlogits, tile))
        if dtable is not None:
            dtable[tile.kind] += dx
        return dx.astype(program.dtype)

    def stages(first: Any, tiles: Sequence[Tile]) -> None:
        spreads = [spread(first, turn, tile) for turn, tile in enumerate(tiles)]
        for tile, dx in zip(tiles, spreads, strict=True):
            q = program.rows_beyond(tile, query.read_tile(first, tile.map, tile.rows))
            program.add_to_slab(dkeys, tile, program.product(dx, program.by_head(q), PLAIN))
            dq = program.product(dx, program.slab(keys, tile), COLUMNS_BY_COLUMNS)
            dquery.write_tile(first, tile.map, tile.rows, program.own_lanes(dq) * scale)

    slots.open()
    program.walk(
        stages,
        read=[query, dlogits],
        copied=[Copies(key, keys)],
        written=[dquery],
        summed=[Copies(dkey, dkeys, scale)],
    )


def av(program: Program, slots: Slots, weights: Map, value: Map, out: Map, values: Ref) -> None:
    """The weighted sum of the values of every query's window."""

    def stages(first: Any, tiles: Sequence[Tile]) -> None:
        spreads = [
            slots.to_slab(turn, tile, _read(program, first, weights, tile)).astype(program.dtype)
            for turn, tile in enumerate(tiles)
        ]
        for tile, w in zip(tiles, spreads, strict=True):
            x = program.product(w, program.slab(values, tile), COLUMNS_BY_COLUMNS)
            out.write_tile(first, tile.map, tile.rows, program.own_lanes(x))

    slots.open()
    program.walk(stages, read=[weights], copied=[Copies(value, values)], written=[out])


def av_gradients(
    program: Program,
    slots: tuple[Slots, Slots],
    weights: Map,
    value: Map,
    dout: Map,
    dweights: Map,
    dvalue: Map,
    scratch: tuple[Ref, Ref],
) -> None:
    """Gradients of weights and values; slots have one scratch memory for each direction."""
    values, dvalues = scratch
    of_slab, to_slab = slots

    def products(first: Any, turn: int, tile: Tile) -> tuple[jax.Array, jax.Array, jax.Array]:
        do = program.by_head(program.rows_beyond(tile, dout.read_tile(first, tile.map, tile.rows)))
        w = to_slab.to_slab(turn, tile, _read(program, first, weights, tile)).astype(program.dtype)
        return do, w, program.product(program.slab(values, tile), do, ROWS_BY_ROWS)

    def stages(first: Any, tiles: Sequence[Tile]) -> None:
        found = [products(first, turn, tile) for turn, tile in enumerate(tiles)]
        for turn, (tile, (do, w, dw)) in enumerate(zip(tiles, found, strict=True)):
            dweights.write_tile(first, tile.map, tile.rows, of_slab.of_slab(turn, tile, dw))
            program.add_to_slab(dvalues, tile, program.product(w, do, PLAIN))

    to_slab.open()
    program.walk(
        stages,
        read=[dout, weights],
        copied=[Copies(value, values)],
        written=[dweights],
        summed=[Copies(dvalue, dvalues)],
    )


def _read(program: Program, first: Any, slots: Map, tile: Tile) -> jax.Array:
    """The slots of a tile, ``[heads, *tile, slots]``, with zeros where there is no query."""
    x = slots.read_tile(first, tile.map, tile.rows).astype(jnp.float32)
    return program.heads_beyond(program.rows_beyond(tile, x, apart=1))
