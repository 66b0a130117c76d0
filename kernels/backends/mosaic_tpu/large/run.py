"""Launching the kernels: what each reads and writes at a step of its grid."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from natjax.kernels.autodiff import LOG2_E
from natjax.kernels.backends.mosaic_tpu import run as small
from natjax.kernels.backends.mosaic_tpu.large import kernels, packing
from natjax.kernels.backends.mosaic_tpu.large.chunk import HEADS_OF_STATISTICS, Step
from natjax.kernels.backends.mosaic_tpu.large.walk import Walk
from natjax.kernels.backends.mosaic_tpu.layout import LANES, SUBLANES
from natjax.kernels.spec import KernelCall

type Operand = tuple[Array, Any]

# Of which a step has its number among the plan's fields: see `Walk.steps`.
_GROUP, _AXES = 2, 3


@dataclasses.dataclass(frozen=True)
class _Launch:
    """A call of one kernel.

    Attributes:
      call: what it is part of.
      walk: tiles and chunks.
      batch: images.
      sets: sets of images that each have a bias.
      blocks: blocks of lanes.
    """

    call: KernelCall
    walk: Walk
    batch: int
    sets: int
    blocks: int

    @classmethod
    def of(cls, call: KernelCall, walk: Walk, query: Array, rpb: tuple[Array, ...]) -> _Launch:
        # A device may have fewer heads than there are in all.
        walk = dataclasses.replace(walk, heads=min(walk.heads, query.shape[2]))
        sets = rpb[0].shape[0] if rpb else 1
        return cls(call, walk, query.shape[0], sets, -(-query.shape[2] // walk.heads))

    @property
    def heads(self) -> int:
        """Heads in all, those that fill up the last block of lanes included."""
        return self.blocks * self.walk.heads

    def _set_of(self, image: Any) -> Any:
        """The set that an image belongs to; without a division where there is one."""
        return 0 if self.sets == 1 else image // (self.batch // self.sets)

    def rows(self, x: Array) -> Operand:
        """A map, of which a step has a tile."""
        return packing.as_map(x, self.walk, self.walk.rows), self.rows_spec

    def columns(self, x: Array) -> Operand:
        """A map, of which a step has a chunk."""
        x = packing.as_map(x, self.walk, self.walk.others)
        return packing.as_columns(x, self.walk), self.columns_spec

    def row_statistics(self, x: Array) -> Operand:
        """The map of statistics, of which a step has a tile."""
        return x, self._tiles(LANES, self._statistics_of)

    def column_statistics(self, x: Array) -> Operand:
        """The map of statistics, of which a step has a chunk."""
        return packing.as_columns(x, self.walk), self._chunks(LANES, self._statistics_of)

    @property
    def rows_spec(self) -> pl.BlockSpec:
        """A tile of a map."""
        return self._tiles(self.walk.lanes, lambda g: g)

    @property
    def columns_spec(self) -> pl.BlockSpec:
        """A chunk of a map."""
        return self._chunks(self.walk.lanes, lambda g: g)

    def _statistics_of(self, g: Any) -> Any:
        return g * self.walk.heads // HEADS_OF_STATISTICS

    def _tiles(self, lanes: int, lanes_of: Callable[[Any], Any]) -> pl.BlockSpec:
        """A tile; the last along an axis may reach beyond the map."""

        def index(g: Any, b: Any, step: Any, plan: Any) -> tuple[Any, ...]:
            tile = (self._field(plan, step, _AXES + i) for i in range(self._n))
            return b, self._field(plan, step, _GROUP), *tile, lanes_of(g)

        return pl.BlockSpec((None, None, *self.walk.tile, lanes), index)

    def _chunks(self, lanes: int, lanes_of: Callable[[Any], Any]) -> pl.BlockSpec:
        """A chunk, wherever it begins."""
        *leading, last = range(_AXES + self._n, _AXES + 2 * self._n)

        def index(g: Any, b: Any, step: Any, plan: Any) -> tuple[Any, ...]:
            first = (self._field(plan, step, i) for i in leading)
            column = pl.multiple_of(self._field(plan, step, last), SUBLANES)
            return b, self._field(plan, step, _GROUP), *first, column, lanes_of(g) * lanes

        sizes = (1, 1, *self.walk.chunk, lanes)
        return pl.BlockSpec(tuple(map(pl.Element, sizes)), index)

    def map_result(self, dtype: Any) -> tuple[jax.ShapeDtypeStruct, pl.BlockSpec]:
        """A map of rows."""
        channels = self.blocks * self.walk.lanes
        positions = self.walk.positions(self.walk.rows)
        shape = (self.batch, self.walk.num_groups, *positions, channels)
        return jax.ShapeDtypeStruct(shape, dtype), self.rows_spec

    @property
    def per_row_result(self) -> tuple[jax.ShapeDtypeStruct, pl.BlockSpec]:
        """What there is one of for each row, all of a block of lanes at a time."""
        heads, tiles = self.walk.heads, (self.walk.num_tiles, self.walk.num_rows)
        spec = pl.BlockSpec((None, heads, *tiles), lambda g, b, *_: (b, g, 0, 0))
        shape = (self.batch, self.heads, *tiles)
        return jax.ShapeDtypeStruct(shape, jnp.float32), spec

    def table(self, rpb: tuple[Array, ...]) -> list[Operand]:
        """The table of biases, of which a step has a block; nothing without biases."""
        biases = self.walk.biases
        if biases is None:
            return []
        (x,) = rpb
        x = jnp.pad(x, ((0, 0), (0, self.heads - x.shape[1]), (0, 0)))
        x = x.reshape(-1, x.shape[2])

        def index(g: Any, b: Any, step: Any, plan: Any) -> tuple[Any, ...]:
            head = (self._set_of(b) * self.blocks + g) * self.walk.heads
            starts = (
                biases.start(
                    i, *(self._field(plan, step, _AXES + part + i) for part in (0, self._n))
                )
                for i in range(self._n - 1)
            )
            kind = self._field(plan, step, biases.field)
            return head, kind, *starts, 0, 0

        sizes = (self.walk.heads, 1, *biases.block, biases.width, biases.lanes)
        return [(biases.table(x, LOG2_E), pl.BlockSpec(tuple(map(pl.Element, sizes)), index))]

    @property
    def table_results(self) -> list[tuple[jax.ShapeDtypeStruct, pl.BlockSpec]]:
        """The gradient of the table of biases, all of a set and a block of lanes; nothing without
        biases.
        """
        biases = self.walk.biases
        if biases is None:
            return []
        shape = (len(biases.kinds), *biases.entries, biases.width, biases.lanes)
        zeros = (0,) * len(shape)
        spec = pl.BlockSpec(
            (self.walk.heads, *shape),
            lambda g, b, *_: (self._set_of(b) * self.blocks + g, *zeros),
            pipeline_mode=pl.Buffered(1),
        )
        return [(jax.ShapeDtypeStruct((self.sets * self.heads, *shape), jnp.float32), spec)]

    def bias_gradients(self, tables: Sequence[Array], heads: int) -> list[Float[Array, "S N R"]]:
        """The gradients of the biases of each set and head, from those of their tables."""
        biases = self.walk.biases
        if biases is None:
            return []
        gradients = (biases.gradient(x).reshape(self.sets, self.heads, -1) for x in tables)
        return [x[:, :heads] for x in gradients]

    @property
    def sums(self) -> Any:
        """Scratch memory for what is added up of a tile."""
        return pltpu.VMEM((self.walk.num_rows, self.walk.lanes), jnp.float32)

    @property
    def per_head(self) -> Any:
        """Scratch memory for what there is one of for each row and head."""
        return pltpu.VMEM((self.walk.heads, self.walk.num_rows, LANES), jnp.float32)

    def run(
        self,
        name: str,
        body: Callable[..., None],
        rpb: tuple[Array, ...],
        plan: tuple[Array, ...],
        inputs: list[Operand],
        outputs: list[tuple[jax.ShapeDtypeStruct, pl.BlockSpec]],
        scratch: list[Any],
        *,
        sums_batch: bool = False,
    ) -> tuple[Array, ...]:
        """Run ``body(step, *refs)`` over blocks of lanes, images and, within those, all steps.

        Args:
          name: of the kernel.
          body: it.
          rpb: the biases of each set of images and head, if there are any.
          plan: `Walk.plan`.
          inputs: what it reads.
          outputs: what it writes.
          scratch: memory that it has for itself.
          sums_batch: whether it adds something up over the images of a set.
        """
        steps, *masks = plan
        if not self.call.interpret:
            # Else XLA may put whole maps in vector memory, from which blocks are not copied by DMA.
            inputs = [(pltpu.with_memory_space_constraint(x, pltpu.HBM), y) for x, y in inputs]
        first = [*zip(masks, self._mask_specs, strict=True), *self.table(rpb)]
        grid = (self.blocks, self.batch, self.walk.num_steps)

        def kernel(steps: Any, *refs: Any) -> None:
            masks, rest = refs[: self._n], refs[len(first) :]
            bias = refs[self._n] if self.walk.has_bias else None
            place = map(pl.program_id, range(3))
            images = self.batch // self.sets if self.sets > 1 else None
            step = Step(self.walk, *place, images, steps, masks, bias, self.call.scale)
            body(step, *rest)

        return small.run_kernel(
            self.call,
            name,
            kernel,
            grid,
            steps,
            [*first, *inputs],
            outputs,
            scratch,
            in_order=2 if sums_batch else 1,
        )

    @property
    def _n(self) -> int:
        return len(self.walk.axes)

    @property
    def _mask_specs(self) -> list[pl.BlockSpec]:
        def spec(i: int) -> pl.BlockSpec:
            def index(g: Any, b: Any, step: Any, plan: Any) -> tuple[Any, ...]:
                del g, b
                return self._field(plan, step, _AXES + 2 * self._n + i), 0, 0

            return pl.BlockSpec((None, self.walk.tile[i], self.walk.num_columns), index)

        return [spec(i) for i in range(self._n)]

    def _field(self, plan: Any, step: Any, i: int) -> Any:
        return plan[step * self.walk.num_fields + i]


def attention(
    call: KernelCall,
    walk: Walk,
    q: Float[Array, "B T N D"],
    k: Float[Array, "B U M D"],
    v: Float[Array, "B U M Dv"],
    *rest: Array,
) -> tuple[Float[Array, "B T N Dv"], Float[Array, "B T N"]]:
    """The output and its log-sum-exp.

    Args:
      call: what the kernel is specialised for.
      walk: tiles of queries.
      q: queries.
      k: keys.
      v: values.
      *rest: the biases ``[S, N, R]`` of each set of images and head, if there are any, and
        `Walk.plan`.
    """
    rpb, plan = _split(walk, rest)
    launch = _Launch.of(call, walk, q, rpb)
    if not launch.batch:
        return jnp.zeros((*q.shape[:3], v.shape[-1]), q.dtype), jnp.zeros(q.shape[:3])
    k, v = _for_each_query_head(q, k, v)
    out, lse = launch.run(
        "natjax_tpu_large_forward",
        kernels.forward,
        rpb,
        plan,
        [launch.rows(q), launch.columns(k), launch.columns(v)],
        [launch.map_result(q.dtype), launch.per_row_result],
        [launch.sums, launch.per_head, launch.per_head],
    )
    heads = q.shape[2]
    return (
        packing.from_map(out, launch.walk, heads, v.shape[-1]),
        packing.unpack_rows(lse, launch.walk, heads),
    )


def query_gradient(
    call: KernelCall,
    walk: Walk,
    q: Float[Array, "B T N D"],
    k: Float[Array, "B U M D"],
    v: Float[Array, "B U M Dv"],
    do: Float[Array, "B T N Dv"],
    lse: Float[Array, "B T N"],
    delta: Float[Array, "B T N"],
    *rest: Array,
) -> tuple[Array, ...]:
    """The gradient of queries, and that of the biases if there are any.

    Args:
      call: as in `attention`, and so are the other arguments but these.
      walk: tiles of queries.
      q: queries.
      k: keys.
      v: values.
      do: gradient of the output.
      lse: log-sum-exp.
      delta: sum of the gradients of a query's weights, each times its weight, less the gradient of
        the log-sum-exp.
      *rest: as in `attention`.
    """
    rpb, plan = _split(walk, rest)
    launch = _Launch.of(call, walk, q, rpb)
    if not launch.batch:
        return tuple(map(jnp.zeros_like, (q, *rpb)))
    statistics = packing.statistics(lse * LOG2_E, delta, launch.walk)
    keys = (launch.columns(x) for x in _for_each_query_head(q, k, v))
    dq, *dtable = launch.run(
        "natjax_tpu_large_dquery",
        kernels.dquery,
        rpb,
        plan,
        [launch.rows(q), *keys, launch.rows(do), launch.row_statistics(statistics)],
        [launch.map_result(q.dtype), *launch.table_results],
        [launch.sums, launch.per_head, launch.per_head],
        sums_batch=bool(rpb),
    )
    heads = q.shape[2]
    dq = packing.from_map(dq, launch.walk, heads, q.shape[-1])
    return dq, *launch.bias_gradients(dtable, heads)


def key_value_gradients(
    call: KernelCall,
    walk: Walk,
    q: Float[Array, "B T N D"],
    k: Float[Array, "B U M D"],
    v: Float[Array, "B U M Dv"],
    do: Float[Array, "B T N Dv"],
    lse: Float[Array, "B T N"],
    delta: Float[Array, "B T N"],
    *rest: Array,
) -> tuple[Float[Array, "B U M D"], Float[Array, "B U M Dv"]]:
    """The gradients of keys and values; arguments as in `query_gradient`, with tiles of keys."""
    rpb, plan = _split(walk, rest)
    launch = _Launch.of(call, walk, q, rpb)
    if not launch.batch:
        return jnp.zeros_like(k), jnp.zeros_like(v)

    statistics = packing.statistics(lse * LOG2_E, delta, launch.walk)
    keys = (launch.rows(x) for x in _for_each_query_head(q, k, v))
    # Gradients that are still to be summed over the queries of a group are not rounded.
    result = launch.map_result(jnp.float32 if q.shape[2] > k.shape[2] else k.dtype)
    dk, dv = launch.run(
        "natjax_tpu_large_dkeyvalue",
        kernels.dkeyvalue,
        rpb,
        plan,
        [launch.columns(q), *keys, launch.columns(do), launch.column_statistics(statistics)],
        [result, result],
        [launch.sums, launch.sums],
    )
    dk, dv = (
        packing.from_map(x, launch.walk, q.shape[2], like.shape[-1])
        for x, like in ((dk, k), (dv, v))
    )
    return small.per_key_head(dk, k), small.per_key_head(dv, v)


def _split(walk: Walk, rest: tuple[Array, ...]) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """The biases of each set of images and head, if there are any; and the plan."""
    return rest[: walk.has_bias], rest[walk.has_bias :]


def _for_each_query_head(q: Array, *keys: Array) -> list[Array]:
    groups = q.shape[2] // keys[0].shape[2]
    return [jnp.repeat(x, groups, axis=2) if groups > 1 else x for x in keys]
