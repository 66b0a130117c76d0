"""Launching the kernels: what lies in memory, how much at once, over which grid."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from natjax.kernels.autodiff import LOG2_E, Arrays
from natjax.kernels.backends.mosaic_tpu import packing
from natjax.kernels.backends.mosaic_tpu.backward import backward
from natjax.kernels.backends.mosaic_tpu.forward import forward
from natjax.kernels.backends.mosaic_tpu.layout import LANES, Layout
from natjax.kernels.backends.mosaic_tpu.maps import Groups, Images
from natjax.kernels.backends.mosaic_tpu.memory import VMEM_LIMIT, block_of, steps_of
from natjax.kernels.backends.mosaic_tpu.program import Program, Steps
from natjax.kernels.backends.mosaic_tpu.softmax import HIDDEN, Softmax
from natjax.kernels.plan.blocks import Rows
from natjax.kernels.plan.pattern import pattern_of
from natjax.kernels.sharding.partitioning import align_varying
from natjax.kernels.spec import KernelCall

# Pallas' plain interpreter. Tests also set `pltpu.InterpretParams`, which has memory as a TPU has.
INTERPRETER: Any = True


@dataclasses.dataclass(frozen=True)
class Launch:
    """A call of one kernel.

    Attributes:
      call: what it is part of.
      layout: of its maps.
      steps: how much a program does at once.
      batch: images, or strips of images.
      sets: sets of images that each have a bias.
      heads: query heads, each with its keys.
      dtype: of the maps.
    """

    call: KernelCall
    layout: Layout
    steps: Steps
    batch: int
    sets: int
    heads: int
    dtype: Any

    @classmethod
    def of(
        cls,
        call: KernelCall,
        layout: Layout,
        query: Array,
        rpb: Arrays = (),
        slots: int = 0,
        *,
        is_backward: bool = False,
    ) -> Launch:
        """A launch of a call, whose batch and heads are those of an array ``[B, T, N, ...]``.

        Args:
          call: what it is part of.
          layout: of its maps.
          query: the array.
          rpb: the biases ``[S, N, R]`` of each set of images, if there are any.
          slots: window slots of a query in the arguments or results, if any are there.
          is_backward: whether it is the fused backward kernel.
        """
        # A device may have fewer heads than there are in all.
        layout = dataclasses.replace(layout, heads=min(layout.heads, query.shape[2]))
        # An empty batch has no steps, and reaches no kernel.
        sets = rpb[0].shape[0] if rpb else 1
        images = max(1, query.shape[0] // sets)
        itemsize = query.dtype.itemsize
        steps = steps_of(layout, images, itemsize, slots, is_backward=is_backward)
        batch = query.shape[0] * layout.num_strips
        return cls(call, layout, steps, batch, sets, query.shape[2], query.dtype)

    def maps(self, queries: list[Array], keys: list[Array]) -> list[tuple[Array, pl.BlockSpec]]:
        """Maps and their blocks, with keys for every query head."""
        groups = self.heads // keys[0].shape[2]
        if groups > 1:
            keys = [jnp.repeat(x, groups, axis=2) for x in keys]
        return [
            (packing.as_map(x, self.layout, of), self.map_spec(of))
            for of, arrays in (("queries", queries), ("keys", keys))
            for x in arrays
        ]

    def map_spec(self, of: Rows) -> pl.BlockSpec:
        """Images with a block of lanes; without dilation as far as tiles reach."""
        size = block_of(self.layout, of)
        axes = (0,) * len(size)
        return pl.BlockSpec(
            (self.steps.images, *size, self.layout.lanes), lambda g, b, *_: (b, *axes, g)
        )

    @property
    def row_spec(self) -> pl.BlockSpec:
        """A row of lanes for each tile."""
        tiles, lanes = self.layout.num_tiles, self.layout.logit_lanes
        return pl.BlockSpec((None, self.steps.images, tiles, lanes), lambda g, b, *_: (g, b, 0, 0))

    @property
    def programs_of_set(self) -> int:
        """Programs for the images of a set, and a block of lanes."""
        return self.batch // self.steps.images // self.sets

    def table_spec(self, table: tuple[int, ...]) -> pl.BlockSpec:
        """All kinds of tiles for a set and a block of lanes; without a bias, one for all."""

        def place(g: Any, b: Any, *_: Any) -> tuple[Any, ...]:
            of_set = b // self.programs_of_set if table[0] > 1 else 0
            return of_set, g if table[1] > 1 else 0, 0, 0, 0

        return pl.BlockSpec((None, None, *table[2:]), place)

    def written(self, of: Rows, dtype: Any = None) -> tuple[jax.ShapeDtypeStruct, pl.BlockSpec]:
        """A result that is a map of all heads, and its blocks."""
        shape = (*self.layout.tokens_of_strip(of), self.heads * self.layout.head_dim)
        result = jax.ShapeDtypeStruct((self.batch, *shape), dtype or self.dtype)
        return result, self.map_spec(of)

    def summed(self, key: Array) -> tuple[jax.ShapeDtypeStruct, pl.BlockSpec]:
        """The gradient of keys or values, as `written`.

        Those that are still to be summed, over queries of a group or strips, are not rounded.
        """
        is_summed = self.heads > key.shape[2] or self.layout.num_strips > 1
        return self.written("keys", jnp.float32 if is_summed else None)

    @property
    def row(self) -> Any:
        """Scratch memory for a row of lanes."""
        return pltpu.VMEM((1, self.layout.logit_lanes), jnp.float32)

    @property
    def row_result(self) -> jax.ShapeDtypeStruct:
        """A row of lanes for each tile, of all heads."""
        blocks = packing.num_blocks(self.heads, self.layout)
        shape = (blocks, self.batch, self.layout.num_tiles, self.layout.logit_lanes)
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    def copies(self, count: int) -> list[Any]:
        """Scratch memory for copies of keys."""
        shape = (self.steps.maps, *self.layout.copy, self.layout.lanes)
        return [pltpu.VMEM(shape, jnp.float32)] * count

    def raised(self, tiled: int, whole: int, slots: int = 0) -> list[Any]:
        """Scratch memory for images in float32.

        Args:
          tiled: those that are read by tiles.
          whole: those that are read as a whole.
          slots: those of window slots, which are read by tiles.
        """
        layout = self.layout
        if layout.groups == 1:
            return []
        maps, heads, lanes = self.steps.maps, layout.heads, layout.lanes
        of_queries, of_keys = self._image("queries"), self._image("keys")
        of_slots = [(heads, *of_queries, n) for n in self._lanes_of_slots]
        of_slots += [(maps, heads, *layout.tiled, sum(self._lanes_of_slots))]
        shapes = [(*of_queries, lanes), (maps, *layout.tiled, lanes)] * tiled
        shapes += of_slots * slots + [(*of_keys, lanes)] * whole
        return [pltpu.VMEM(shape, jnp.float32) for shape in shapes]

    @property
    def _lanes_of_slots(self) -> list[int]:
        """Window slots of a query, in parts of 128."""
        slots = self.call.spec.neighborhood.num_neighbors
        return [min(LANES, slots - first) for first in range(0, slots, LANES)]

    def _image(self, of: Rows) -> tuple[int, ...]:
        """Tokens of an image if all of its dilation groups were as long as the longest."""
        sizes = zip(self.layout.positions(of), self.layout.dilation, strict=True)
        return tuple(n * d for n, d in sizes)

    def program(self, plan: Any) -> Program:
        """What a kernel is specialised for."""
        programs = self.programs_of_set if self.sets > 1 else None
        return Program.of(self.layout, self.steps, self.dtype, self.heads, plan, programs)

    def operands(
        self,
        queries: list[Any],
        keys: list[Any],
        scratch: list[Any],
        slots: list[Any] | None = None,
    ) -> list[Any]:
        """The blocks of maps with their scratch memory as in `raised`; all but keys go by tiles."""
        layout = self.layout
        tiled = [(block, 0) for block in queries] + [(block, 1) for block in slots or ()]
        if layout.groups == 1:
            return [
                *(Images(layout, "queries", block, apart) for block, apart in tiled),
                *(Images(layout, "keys", block) for block in keys),
            ]
        refs, parts = iter(scratch), (1, len(self._lanes_of_slots))

        def group(of: Rows, block: Any, apart: int = 0) -> Groups:
            raised = tuple(next(refs) for _ in range(parts[apart]))
            maps = next(refs) if of == "queries" else None
            return Groups(layout, of, block, raised, maps, apart)

        return [
            *(group("queries", block, apart) for block, apart in tiled),
            *(group("keys", block) for block in keys),
        ]

    def run(
        self,
        name: str,
        body: Callable[..., None],
        plan: Array,
        inputs: list[tuple[Array, pl.BlockSpec]],
        outputs: list[tuple[jax.ShapeDtypeStruct, pl.BlockSpec]],
        scratch: list[Any],
    ) -> tuple[Array, ...]:
        """Run a kernel over blocks of lanes and, within those, over the batch in order."""
        grid = (packing.num_blocks(self.heads, self.layout), self.batch // self.steps.images)
        return run_kernel(self.call, name, body, grid, plan, inputs, outputs, scratch)


def run_kernel(
    call: KernelCall,
    name: str,
    body: Callable[..., None],
    grid: tuple[int, ...],
    plan: Array,
    inputs: list[tuple[Array, pl.BlockSpec]],
    outputs: list[tuple[jax.ShapeDtypeStruct, pl.BlockSpec]],
    scratch: list[Any],
    *,
    in_order: int = 1,
) -> tuple[Array, ...]:
    """Run a kernel over a grid, along whose last axes it goes in order.

    Args:
      call: what it is part of.
      name: what profiles call it.
      body: takes references to the plan, the inputs, the outputs and the scratch memory.
      grid: sizes of the grid.
      plan: numbers that lie in scalar memory.
      inputs: arrays, and their blocks.
      outputs: results, and their blocks.
      scratch: memory that the kernel has for itself.
      in_order: of the axes of the grid.
    """
    arrays = align_varying(plan, *(x for x, _ in inputs))
    varying = jax.typeof(arrays[0]).manual_axis_type
    run = pl.pallas_call(
        body,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=grid,
            in_specs=[spec for _, spec in inputs],
            out_specs=[spec for _, spec in outputs],
            scratch_shapes=scratch,
        ),
        out_shape=[
            jax.ShapeDtypeStruct(x.shape, x.dtype, manual_axis_type=varying) for x, _ in outputs
        ],
        interpret=INTERPRETER if call.interpret else False,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=(
                *["parallel"] * (len(grid) - in_order),
                *["arbitrary"] * in_order,
            ),
            vmem_limit_bytes=VMEM_LIMIT,
        ),
        name=name,
    )
    return tuple(run(*arrays))


def attention(
    call: KernelCall,
    layout: Layout,
    q: Float[Array, "B T N D"],
    k: Float[Array, "B U M D"],
    v: Float[Array, "B U M Dv"],
    plan: Int[Array, "F"],
    *rpb: Float[Array, "S N R"],
) -> tuple[Float[Array, "B T N Dv"], Float[Array, "B T N"]]:
    """The output and its log-sum-exp.

    Args:
      call: what the kernel is specialised for.
      layout: of its maps.
      q: queries.
      k: keys.
      v: values.
      plan: `Layout.plan` of the part of the tokens at hand.
      *rpb: the biases of each set of images and head, if there are any.
    """
    launch = Launch.of(call, layout, q, rpb)
    layout = launch.layout
    if not launch.batch:
        return jnp.zeros((*q.shape[:3], v.shape[-1]), q.dtype), jnp.zeros(q.shape[:3])
    maps = launch.maps([q], [k, v])
    packed = table_of(layout, rpb)

    def body(plan_ref: Any, *refs: Any) -> None:
        q_ref, k_ref, v_ref, table_ref, out_ref, lse_ref, keys, values, failed, *raised = refs
        query, out, key, value = launch.operands([q_ref, out_ref], [k_ref, v_ref], raised)
        program = launch.program(plan_ref)
        forward(
            program,
            query,
            key,
            value,
            Softmax(table_ref, failed, call.scale),
            out,
            lse_ref,
            keys,
            values,
        )

    out, lse = launch.run(
        "natjax_tpu_forward",
        body,
        plan,
        [*maps, (packed, launch.table_spec(packed.shape))],
        [
            launch.written("queries"),
            (launch.row_result, launch.row_spec),
        ],
        [*launch.copies(2), launch.row, *launch.raised(2, 2)],
    )
    return (
        packing.from_map(out, layout, v.shape[-1], "queries"),
        packing.unpack_rows(lse, layout, launch.heads),
    )


def attention_gradients(
    call: KernelCall,
    layout: Layout,
    q: Float[Array, "B T N D"],
    k: Float[Array, "B U M D"],
    v: Float[Array, "B U M Dv"],
    do: Float[Array, "B T N Dv"],
    dlse: Float[Array, "B T N"],
    plan: Int[Array, "F"],
    *rpb: Float[Array, "S N R"],
) -> tuple[Array, ...]:
    """Gradients of queries, keys, values and, if there are any, of the biases.

    Args:
      call: as in `attention`, and so are the other arguments but these.
      layout: of its maps.
      q: queries.
      k: keys.
      v: values.
      do: gradient of the output.
      dlse: gradient of the log-sum-exp.
      plan: `Layout.plan` of the part of the tokens at hand.
      *rpb: the biases of each set of images and head, if there are any.
    """
    launch = Launch.of(call, layout, q, rpb, is_backward=True)
    layout, has_bias = launch.layout, bool(rpb)
    if not launch.batch:
        return tuple(jnp.zeros(x.shape, x.dtype) for x in (q, k, v, *rpb))
    q_map, do_map, k_map, v_map = launch.maps([q, do], [k, v])
    rows, packed = packing.pack_rows(dlse, layout), table_of(layout, rpb)

    def body(plan_ref: Any, *refs: Any) -> None:
        q_ref, k_ref, v_ref, do_ref, dlse_ref, table_ref, dq_ref, dk_ref, dv_ref, *rest = refs
        dtable_ref = rest.pop(0) if has_bias else None
        copies, failed = tuple(rest[:4]), rest[4]
        before, raised = rest[5] if has_bias else None, rest[5 + has_bias :]
        query, dout, dquery, key, value, dkey, dvalue = launch.operands(
            [q_ref, do_ref, dq_ref], [k_ref, v_ref, dk_ref, dv_ref], raised
        )
        program = launch.program(plan_ref)
        backward(
            program,
            query,
            key,
            value,
            dout,
            dlse_ref,
            Softmax(table_ref, failed, call.scale),
            dquery,
            dkey,
            dvalue,
            dtable_ref,
            before,
            copies,
        )

    results = [launch.written("queries"), launch.summed(k), launch.summed(v)]
    table_spec = launch.table_spec(packed.shape)
    if has_bias:
        results.append((jax.ShapeDtypeStruct(packed.shape, jnp.float32), table_spec))
    kept = [pltpu.VMEM(packed.shape[2:], jnp.float32)] * has_bias
    dq, dk, dv, *dtable = launch.run(
        "natjax_tpu_backward",
        body,
        plan,
        [q_map, k_map, v_map, do_map, (rows, launch.row_spec), (packed, table_spec)],
        results,
        [*launch.copies(4), launch.row, *kept, *launch.raised(3, 4)],
    )
    gradients = [
        packing.from_map(dq, layout, q.shape[-1], "queries"),
        per_key_head(packing.from_map(dk, layout, k.shape[-1], "keys"), k),
        per_key_head(packing.from_map(dv, layout, v.shape[-1], "keys"), v),
    ]
    return *gradients, *(bias_gradient(x, layout, launch.heads) for x in dtable)


def table_of(
    layout: Layout, rpb: tuple[Array, ...], hidden: float = HIDDEN, factor: float = LOG2_E
) -> Array:
    """What is added to the logits of each kind of tile, for each set of images and block of lanes,
    or for all alike.

    Where a tile reaches beyond the queries nothing is hidden, so that softmaxes are finite there.
    """
    pattern = pattern_of(layout.blocks)
    bias = rpb[0].reshape(-1, *pattern.bias_shape) if rpb else None
    table = pattern.table(bias, hidden, factor)
    table = jnp.where(pattern.has_columns[..., None], table, 0.0)
    table = table.reshape(rpb[0].shape[0] if rpb else 1, -1, *table.shape[1:])
    return jax.vmap(lambda x: packing.pack_table(x, layout))(table)


def bias_gradient(table: Array, layout: Layout, heads: int) -> Float[Array, "S N R"]:
    """The transpose of `table_of`."""
    tables = jax.vmap(lambda x: packing.unpack_table(x, layout, heads))(table)
    gradient = pattern_of(layout.blocks).bias_gradient(tables.reshape(-1, *tables.shape[2:]))
    return gradient.reshape(len(table), heads, -1)


def per_key_head(gradient: Array, like: Array) -> Array:
    """Sum over the query heads of each key head."""
    if gradient.shape == like.shape:
        return gradient.astype(like.dtype)
    grouped = gradient.reshape(*like.shape[:3], -1, like.shape[-1])
    return grouped.sum(axis=3).astype(like.dtype)
