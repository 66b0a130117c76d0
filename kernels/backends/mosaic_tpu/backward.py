"""The backward kernel: all gradients of a call at once."""

from __future__ import annotations

import functools
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
    Again,
    Copies,
    Program,
    Tile,
)
from natjax.kernels.backends.mosaic_tpu.softmax import Exponentials, Softmax

type Ref = Any
type Map = Images | Groups


def backward(
    program: Program,
    query: Map,
    key: Map,
    value: Map,
    dout: Map,
    dlse: Ref,
    softmax: Softmax,
    dquery: Map,
    dkey: Map,
    dvalue: Map,
    dtable: Ref,
    before: Ref,
    scratch: tuple[Ref, Ref, Ref, Ref],
) -> None:
    """Gradients of queries, keys, values and of the table of biases.

    A tile has the whole window of each of its queries, so the softmax is computed again without
    any help from the forward pass. Gradients of keys and values add up in scratch memory, in the
    order of the tiles; those of the table, over a set of images, in the inner loop of the grid.
    ``before`` keeps what programs before this one have added to that, for a second walk.
    """
    keys, values, dkeys, dvalues = scratch
    if dtable is not None:

        @pl.when(program.is_first)
        def _() -> None:
            dtable[...] = jnp.zeros_like(dtable)

        before[...] = dtable[...]

    def products(first: Any, tile: Tile) -> tuple[jax.Array, ...]:
        q = query.read_tile(first, tile.map, tile.rows)
        do = dout.read_tile(first, tile.map, tile.rows)
        q, do = (program.by_head(program.rows_beyond(tile, x)) for x in (q, do))
        k, v = program.slab(keys, tile), program.slab(values, tile)
        return (
            q,
            do,
            k,
            program.product(k, q, ROWS_BY_ROWS),
            program.product(v, do, ROWS_BY_ROWS),
        )

    def gradients(tile: Tile, e: Exponentials, dw: jax.Array) -> tuple[jax.Array, ...]:
        w = e.weights
        delta = (w * dw).sum(axis=0, keepdims=True) - dlse[tile.image, pl.ds(tile.number, 1), :]
        dx = w * (dw - delta)
        if dtable is not None:
            dtable[tile.kind] += dx
        return w.astype(program.dtype), dx.astype(program.dtype)

    def finish(
        first: Any,
        tile: Tile,
        operands: tuple[jax.Array, ...],
        soft: tuple[jax.Array, ...],
    ) -> None:
        (q, do, k), (w, dx) = operands, soft
        program.add_to_slab(dvalues, tile, program.product(w, do, PLAIN))
        program.add_to_slab(dkeys, tile, program.product(dx, q, PLAIN))
        dq = program.own_lanes(program.product(dx, k, COLUMNS_BY_COLUMNS)) * softmax.scale
        dquery.write_tile(first, tile.map, tile.rows, dq)

    def stages(first: Any, tiles: Sequence[Tile], *, is_careful: bool = False) -> None:
        a = [products(first, tile) for tile in tiles]
        every = [
            softmax.exponentials(tile.kind, x[3], is_careful=is_careful)
            for tile, x in zip(tiles, a, strict=True)
        ]
        if not is_careful:
            softmax.check(every)
        b = [gradients(tile, e, x[4]) for tile, e, x in zip(tiles, every, a, strict=True)]
        for tile, x, soft in zip(tiles, a, b, strict=True):
            finish(first, tile, x[:3], soft)

    def begin_again() -> None:
        if dtable is not None:
            dtable[...] = before[...]

    softmax.begin()
    program.walk(
        stages,
        read=[query, dout],
        copied=[Copies(key, keys), Copies(value, values)],
        written=[dquery],
        summed=[Copies(dkey, dkeys, softmax.scale), Copies(dvalue, dvalues)],
        again=Again(softmax.has_failed, begin_again, functools.partial(stages, is_careful=True)),
    )
