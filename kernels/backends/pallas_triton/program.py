"""One program of a kernel: which tile it owns, and how it reads, writes and multiplies."""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array

from natjax.kernels.backends.triton_common.config import padded_head_dim, skips_chunks
from natjax.kernels.plan.blocks import Tile
from natjax.kernels.plan.pattern import HIDDEN
from natjax.kernels.spec import CallSpec, Kernel, KernelCall

# The widest heads whose float32 products are made of three of TF32: wider ones spill.
_WIDEST_BY_THIRDS = 64


@dataclasses.dataclass(frozen=True)
class Program:
    """One program of a kernel: which tile of which head and image, and how it reads and writes.

    Arrays of ``[B, T, N, D]`` are seen as ``[B * T * N, D]``.
    """

    call: KernelCall
    tile: Tile
    batch: Any
    head: Any

    def rows(self) -> Tokens:
        """The tokens of the tile."""
        return self._tokens(self.tile.rows())

    def columns(self, chunk: Any) -> Tokens:
        """The tokens of a chunk of the slab."""
        return self._tokens(self.tile.columns(chunk))

    def _tokens(self, positions: tuple[Any, ...]) -> Tokens:
        token, exists = self.tile.tokens(positions)
        return Tokens(positions, self.batch * self.tile.blocks.num_tokens + token, exists)

    def dot(self, a: Array, b: Array, *, transpose: bool = False) -> Array:
        """``a @ b``, or ``a @ b.T``, in float32."""
        spec = self.call.spec
        tf32, float32 = jax.lax.Precision.HIGH, jax.lax.Precision.HIGHEST
        if by_thirds(spec):
            dot = functools.partial(plgpu.dot, trans_b=transpose, precision=tf32)
            (a_large, a_small), (b_large, b_small) = halves(a), halves(b)
            return dot(a_small, b_large) + dot(a_large, b_small) + dot(a_large, b_large)
        precision = float32 if spec.products in ("float32", "tf32x3") else tf32
        return plgpu.dot(a, b, trans_b=transpose, precision=precision)

    def exp2(self, x: Array) -> Array:
        """Two to the power of float32 values; below 2**-126 it is 0.

        `jax.numpy.exp2` handles denormal numbers, which takes a fifth of a loop's instructions.
        """
        if self.call.interpret:
            return jnp.exp2(x)
        (result,) = plgpu.elementwise_inline_asm(
            "ex2.approx.ftz.f32 $0, $1;",
            args=[x],
            constraints="=f,f",
            pack=1,
            result_shape_dtypes=[jax.ShapeDtypeStruct(x.shape, x.dtype)],
        )
        return result

    def seen(self, rows: Tokens, columns: Tokens) -> Array:
        """Which rows and columns see one another."""
        return self.tile.is_neighbor(rows.positions, columns.positions)


def by_thirds(spec: CallSpec) -> bool:
    """Whether products of float32 numbers are made of three of TF32, which tensor cores do."""
    width = padded_head_dim(max(spec.head_dim, spec.value_dim))
    return spec.products == "tf32x3" and width <= _WIDEST_BY_THIRDS


def halves(x: Array) -> tuple[Array, Array]:
    """The nearest TF32 to each float32 number, and what is left of it.

    TF32 has 13 bits less. What is left has one bit more than TF32, which tensor cores cut off.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.int32)
    large = jax.lax.bitcast_convert_type((bits + 0x1000) & ~0x1FFF, jnp.float32)
    return large, x - large


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Some tokens: where along each axis, which of all images' tokens, and whether they exist."""

    positions: tuple[Any, ...]
    index: Any
    exists: Any

    def load(self, ref: Any, head: Any, heads: int) -> Array:
        """Their rows of a ``[B * T * heads, D]`` array, zeros where there are none."""
        pointer, mask = self._pointer(ref, head, heads)
        return plgpu.load(pointer, mask=mask, other=0.0)

    def store(self, ref: Any, head: Any, heads: int, value: Array) -> None:
        """Write their rows of a ``[B * T * heads, D]`` array."""
        pointer, mask = self._pointer(ref, head, heads, outside=ref.shape[0])
        plgpu.store(pointer, value.astype(ref.dtype), mask=mask)

    def load_scalars(self, ref: Any, head: Any, heads: int) -> Array:
        """Their entries of a ``[B * T * heads]`` array, zeros where there are none."""
        index = jnp.where(self.exists, self.index * heads + head, 0)
        return plgpu.load(ref.at[index], mask=self.exists, other=0.0)

    def store_scalars(self, ref: Any, head: Any, heads: int, value: Array) -> None:
        """Write their entries of a ``[B * T * heads]`` array."""
        index = jnp.where(self.exists, self.index * heads + head, ref.shape[0])
        plgpu.store(ref.at[index], value.astype(ref.dtype), mask=self.exists)

    def _pointer(self, ref: Any, head: Any, heads: int, outside: int = 0) -> tuple[Any, Array]:
        width = ref.shape[1]
        lane = jnp.arange(padded_head_dim(width), dtype=jnp.int32)[None, :]
        mask = self.exists[:, None] & (lane < width)
        # The interpreter must not see a lane that is masked off point at a live address.
        row = jnp.where(self.exists, self.index * heads + head, outside)
        return ref.at[row[:, None], lane], mask


def current_program(call: KernelCall, kernel: Kernel, heads: int) -> Program:
    """The program that runs: tiles fastest, so that neighbors in time share their slabs."""
    blocks = call.blocks(kernel)
    number = pl.program_id(0)
    tile, rest = number % blocks.num_tiles, number // blocks.num_tiles
    return Program(call, blocks.tile_at(tile), batch=rest // heads, head=rest % heads)


class Penalty:
    """What to add to the logits of each block of a program: from a table, or the mask alone."""

    def __init__(self, program: Program, refs: tuple[Any, ...], head: Any) -> None:
        self._program = program
        self._table = None
        if refs:
            self._table, kinds = refs
            self._kind = kinds[program.tile.number]
            self._head = head if self._table.shape[0] > 1 else 0

    def select(self, logits: Array, rows: Tokens, columns: Tokens, chunk: Any) -> Array:
        """As `add`, but what is hidden may be nan, which plus a penalty would be nan.

        So nan in a key does not reach queries that do not see it. Gradients have no use for it,
        since there a product sums over hidden entries too.
        """
        if self._table is None:
            return self.add(logits, rows, columns, chunk)
        block = self._table[self._head, self._kind, chunk]
        return jnp.where(block > HIDDEN / 2, logits + block, HIDDEN)

    def add(self, logits: Array, rows: Tokens, columns: Tokens, chunk: Any) -> Array:
        """The logits of a block with bias and mask."""
        if self._table is not None:
            return logits + self._table[self._head, self._kind, chunk]
        return jnp.where(self._program.seen(rows, columns), logits, HIDDEN)


class Slab:
    """The chunks that a program walks over: of its tile's slab, those that its rows meet."""

    def __init__(self, program: Program, reach: Any) -> None:
        self._axes = program.tile.blocks.axes
        number, axes = program.tile.number, range(len(self._axes))
        self._first = [reach[number, axis, 0] for axis in axes]
        self._count = [reach[number, axis, 1] for axis in axes]

    def fold(self, body: Callable[[Any, Any], Any], start: Any) -> Any:
        """``body(last chunk, ... body(first chunk, start))``."""

        def step(_: Any, carry: Any) -> Any:
            at, inner = carry
            return self._next(at), body(self._number(at), inner)

        total = functools.reduce(operator.mul, self._count)
        _, result = jax.lax.fori_loop(jnp.int32(0), total, step, (self._first, start))
        return result

    def _number(self, at: list[Any]) -> Any:
        """Number among all chunks of a slab of the one at these numbers along the axes."""
        number = jnp.int32(0)
        for axis, i in zip(self._axes, at, strict=True):
            number = number * axis.num_chunks + i
        return number

    def _next(self, at: list[Any]) -> list[Any]:
        """The chunk after one of those that are met, by numbers along the axes."""
        result, step = [], jnp.int32(1)
        for i, first, count in zip(at[::-1], self._first[::-1], self._count[::-1], strict=True):
            moved = i + step
            is_over = moved == first + count
            result.append(jnp.where(is_over, first, moved))
            step = is_over.astype(jnp.int32)
        return result[::-1]


class WholeSlab:
    """All chunks of a slab, where most tiles meet nearly all: the loop has a fixed length."""

    def __init__(self, num_chunks: int) -> None:
        self._num_chunks = num_chunks

    def fold(self, body: Callable[[Any, Any], Any], start: Any) -> Any:
        """``body(last chunk, ... body(first chunk, start))``."""
        return loop(self._num_chunks, body, start)


def plan_of(program: Program, refs: tuple[Any, ...]) -> tuple[tuple[Any, ...], Slab | WholeSlab]:
    """What a kernel takes besides its arrays: the table, if it has one, and the slab to walk over.

    Args:
      program: the program that runs.
      refs: the table and the kind of each tile, or neither; then which chunks each tile meets.
    """
    *table, reach = refs
    blocks = program.tile.blocks
    slab = Slab(program, reach) if skips_chunks(blocks) else WholeSlab(blocks.num_chunks)
    return tuple(table), slab


def loop(count: int, body: Callable[[Any, Any], Any], start: Any) -> Any:
    """``body(count - 1, ... body(0, start))``, without a loop where there is nothing to repeat."""
    if count == 1:
        return body(jnp.int32(0), start)
    return jax.lax.fori_loop(jnp.int32(0), jnp.int32(count), body, start)


def zeros(*shape: int) -> Array:
    """What sums start from, in float32."""
    return jnp.zeros(shape, jnp.float32)
