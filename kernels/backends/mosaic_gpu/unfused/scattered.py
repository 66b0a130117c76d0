"""Numbers that lie anywhere in an array, one by one: window slots are no boxes.

Mosaic loads and stores boxes. So threads address what they have of a block themselves, in Mosaic's
own terms, which Pallas lets one write between its lines. Its interpreter does not know those; there
what a row has is loaded and stored as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.mosaic import gpu as mosaic
from jax.experimental.mosaic.gpu import utils
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, llvm, vector

from natjax.kernels.backends.mosaic_gpu.program import BLOCK, Ints, Program, Ref

# The place of a number that there is not.
NOWHERE = -1
_LOAD = "{ .reg .pred p; setp.ge.s32 p, $2, 0; mov.b16 $0, 0; @p ld.global.nc.b16 $0, [$1]; }"
_STORE = "st.global.b16 [$0], $1;"
# Where the memory of the device is, among LLVM's address spaces.
_GLOBAL = 1


def gather(program: Program, source: Ref, places: jax.Array) -> jax.Array:
    """Numbers of 16 bits of an array ``[n]`` that no thread writes; 0 for those that are nowhere.

    Args:
      program: what the kernel is compiled for.
      source: the array, of the program's dtype.
      places: index of each, or `NOWHERE`, as a block of products is laid out.
    """
    if program.interpret:
        found = jnp.take(plgpu.load(source), places, mode="fill", fill_value=jnp.nan)
        return jnp.where(places >= 0, found, 0)

    @plgpu.inline_mgpu(
        arg_types=(plgpu.RefType(), BLOCK),
        return_type=plgpu.ShapeDtypeStruct(places.shape, program.dtype, layout=BLOCK),
    )
    def load(_: Any, array: Any, places: Any) -> Any:
        number = ir.MemRefType(array.type).element_type
        bits = ir.IntegerType.get_signless(16)

        def load_one(place: Any, _: Any) -> Any:
            pointer = _pointer(array, place)
            return arith.bitcast(number, utils.inline_ptx(_LOAD, pointer, place, result_types=bits))

        return places.foreach(load_one, create_array=True)

    return load(source, places)


def scatter(
    program: Program, target: Ref, places: jax.Array, numbers: jax.Array, size: int
) -> None:
    """Put numbers of 16 bits into an array ``[n]``, but for those that are nowhere.

    Args:
      program: what the kernel is compiled for.
      target: the array, of the program's dtype, of pieces of one size.
      places: index of each, or `NOWHERE`, as a block of products is laid out; those of a row are in
        one piece, that no other row has.
      numbers: the numbers.
      size: of a piece.
    """
    numbers = numbers.astype(program.dtype)
    if program.interpret:
        _scatter_by_row(target, places, numbers, size)
        return

    @plgpu.inline_mgpu(arg_types=(plgpu.RefType(), BLOCK, BLOCK))
    def store(_: Any, array: Any, places: Any, numbers: Any) -> None:
        zero = utils.c(0, ir.IntegerType.get_signless(32))
        bits = ir.IntegerType.get_signless(16)
        for place, number in zip(_entries(places), _entries(numbers), strict=True):
            is_there = arith.cmpi(arith.CmpIPredicate.sge, place, zero)
            number = arith.bitcast(bits, number)
            utils.inline_ptx(_STORE, _pointer(array, place), number, predicate=is_there)

    store(target, places, numbers)


def _scatter_by_row(target: Ref, places: jax.Array, numbers: jax.Array, size: int) -> None:
    """Piece by piece, so that the interpreter sees who writes what."""

    @pl.loop(0, places.shape[0])
    def _(row: Ints) -> None:
        own = places[row]
        piece = target.at[pl.ds(own.max() // size * size, size)]

        @pl.when(own.max() >= 0)
        def _() -> None:
            inside = jnp.where(own >= 0, own % size, size)
            after = plgpu.load(piece).at[inside].set(numbers[row], mode="drop")
            plgpu.store(piece, after, optimized=False)


def _entries(x: mosaic.FragmentedArray) -> Iterator[Any]:
    """What a thread has of a block, one after the other."""
    for register in x.registers.flat:
        (count,) = ir.VectorType(register.type).shape
        for i in range(count):
            yield vector.extract(register, dynamic_position=[], static_position=[i])


def _pointer(array: Any, place: Any) -> Any:
    start = utils.memref_ptr(array)
    if start.type.address_space != _GLOBAL:
        start = llvm.addrspacecast(llvm.PointerType.get(address_space=_GLOBAL), start)
    return utils.getelementptr(start, [place], ir.MemRefType(array.type).element_type)
