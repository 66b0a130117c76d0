"""Launching the kernels of the unfused ops."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from natjax.kernels.backends.mosaic_tpu import packing
from natjax.kernels.backends.mosaic_tpu.layout import Layout
from natjax.kernels.backends.mosaic_tpu.memory import block_of
from natjax.kernels.backends.mosaic_tpu.run import Launch, bias_gradient, per_key_head, table_of
from natjax.kernels.backends.mosaic_tpu.unfused import kernels
from natjax.kernels.backends.mosaic_tpu.unfused.slots import Slots
from natjax.kernels.backends.mosaic_tpu.unfused.windows import Windows
from natjax.kernels.spec import KernelCall


def qk(
    call: KernelCall,
    layout: Layout,
    q: Float[Array, "B T N D"],
    k: Float[Array, "B T M D"],
    plan: Int[Array, "F"],
    *rpb: Float[Array, "S N R"],
) -> tuple[Float[Array, "B T N K"]]:
    """Logits of window slots; anything in those without a key.

    Args:
      call: what the kernel is specialised for.
      layout: of its maps.
      q: queries.
      k: keys.
      plan: `Layout.plan`.
      *rpb: the biases of each set of images and head, if there are any.
    """
    launch, windows = _launched(call, layout, q, rpb)
    if not launch.batch:
        return (jnp.zeros((*q.shape[:3], call.spec.neighborhood.num_neighbors), q.dtype),)

    def body(plan_ref: Any, q_ref: Any, k_ref: Any, first_ref: Any, *refs: Any) -> None:
        refs = list(refs)
        table_ref = refs.pop(0) if rpb else None
        logits_ref, keys, spread, dense, *raised = refs
        query, logits, key = launch.operands([q_ref], [k_ref], raised, [logits_ref])
        kernels.qk(
            launch.program(plan_ref),
            Slots(windows, first_ref, spread, dense),
            query,
            key,
            table_ref,
            logits,
            keys,
            scale=call.scale,
        )

    (logits,) = launch.run(
        "natjax_tpu_qk",
        body,
        plan,
        [*launch.maps([q], [k]), _first(windows), *_tables(launch, rpb)],
        [_slots(launch, windows)],
        launch.copies(1) + _scratch(launch, windows) + launch.raised(1, 1, 1),
    )
    return (packing.from_slots(logits, launch.layout),)


def qk_gradients(
    call: KernelCall,
    layout: Layout,
    q: Float[Array, "B T N D"],
    k: Float[Array, "B T M D"],
    dlogits: Float[Array, "B T N K"],
    plan: Int[Array, "F"],
    *rpb: Float[Array, "S N R"],
) -> tuple[Array, ...]:
    """Gradients of queries, keys and, if there are any, of the biases.

    Args:
      call: as in `qk`, and so are the other arguments but this.
      layout: of its maps.
      q: queries.
      k: keys.
      dlogits: gradients of the logits, zeros in slots without a key.
      plan: `Layout.plan`.
      *rpb: the biases of each set of images and head, if there are any.
    """
    launch, windows = _launched(call, layout, q, rpb)
    if not launch.batch:
        return tuple(jnp.zeros(x.shape, x.dtype) for x in (q, k, *rpb))

    def body(
        plan_ref: Any, q_ref: Any, k_ref: Any, dx_ref: Any, first_ref: Any, *refs: Any
    ) -> None:
        dq_ref, dk_ref, *refs = refs
        dtable_ref = refs.pop(0) if rpb else None
        keys, dkeys, spread, dense, *raised = refs
        query, dquery, dlogits, key, dkey = launch.operands(
            [q_ref, dq_ref], [k_ref, dk_ref], raised, [dx_ref]
        )
        kernels.qk_gradients(
            launch.program(plan_ref),
            Slots(windows, first_ref, spread, dense),
            query,
            key,
            dlogits,
            dquery,
            dkey,
            dtable_ref,
            (keys, dkeys),
            scale=call.scale,
        )

    results = [launch.written("queries"), launch.summed(k)]
    results += [(_like(x), spec) for x, spec in _tables(launch, rpb)]
    dq, dk, *dtable = launch.run(
        "natjax_tpu_qk_gradients",
        body,
        plan,
        [*launch.maps([q], [k]), _given(dlogits, launch, windows), _first(windows)],
        results,
        launch.copies(2) + _scratch(launch, windows) + launch.raised(2, 2, 1),
    )
    gradients = [
        packing.from_map(dq, launch.layout, q.shape[-1], "queries"),
        per_key_head(packing.from_map(dk, launch.layout, k.shape[-1], "keys"), k),
    ]
    return *gradients, *(bias_gradient(x, launch.layout, launch.heads) for x in dtable)


def av(
    call: KernelCall,
    layout: Layout,
    w: Float[Array, "B T N K"],
    v: Float[Array, "B T M Dv"],
    plan: Int[Array, "F"],
) -> tuple[Float[Array, "B T N Dv"]]:
    """Weighted sums of the values in windows.

    Args:
      call: what the kernel is specialised for.
      layout: of its maps.
      w: weights, zeros in slots without a key.
      v: values.
      plan: `Layout.plan`.
    """
    launch, windows = _launched(call, layout, w)
    if not launch.batch:
        return (jnp.zeros((*w.shape[:3], v.shape[-1]), w.dtype),)

    def body(plan_ref: Any, v_ref: Any, w_ref: Any, first_ref: Any, *refs: Any) -> None:
        out_ref, values, spread, dense, *raised = refs
        out, weights, value = launch.operands([out_ref], [v_ref], raised, [w_ref])
        slots = Slots(windows, first_ref, spread, dense)
        kernels.av(launch.program(plan_ref), slots, weights, value, out, values)

    (out,) = launch.run(
        "natjax_tpu_av",
        body,
        plan,
        [*launch.maps([], [v]), _given(w, launch, windows), _first(windows)],
        [launch.written("queries")],
        launch.copies(1) + _scratch(launch, windows) + launch.raised(1, 1, 1),
    )
    return (packing.from_map(out, launch.layout, v.shape[-1], "queries"),)


def av_gradients(
    call: KernelCall,
    layout: Layout,
    w: Float[Array, "B T N K"],
    v: Float[Array, "B T M Dv"],
    do: Float[Array, "B T N Dv"],
    plan: Int[Array, "F"],
) -> tuple[Float[Array, "B T N K"], Float[Array, "B T M Dv"]]:
    """Gradients of weights, anything in slots without a key, and of values.

    Args:
      call: as in `av`, and so are the other arguments but this.
      layout: of its maps.
      w: weights.
      v: values.
      do: gradient of the output.
      plan: `Layout.plan`.
    """
    launch, windows = _launched(call, layout, w)
    if not launch.batch:
        return jnp.zeros(w.shape, w.dtype), jnp.zeros(v.shape, v.dtype)

    def body(
        plan_ref: Any, do_ref: Any, v_ref: Any, w_ref: Any, first_ref: Any, *refs: Any
    ) -> None:
        dw_ref, dv_ref, values, dvalues, *refs = refs
        of_slab = Slots(windows, first_ref, *refs[:2])
        to_slab = Slots(windows, first_ref, *refs[2:4])
        dout, weights, dweights, value, dvalue = launch.operands(
            [do_ref], [v_ref, dv_ref], refs[4:], [w_ref, dw_ref]
        )
        kernels.av_gradients(
            launch.program(plan_ref),
            (of_slab, to_slab),
            weights,
            value,
            dout,
            dweights,
            dvalue,
            (values, dvalues),
        )

    dw, dv = launch.run(
        "natjax_tpu_av_gradients",
        body,
        plan,
        [*launch.maps([do], [v]), _given(w, launch, windows), _first(windows)],
        [_slots(launch, windows), launch.summed(v)],
        launch.copies(2) + _scratch(launch, windows) * 2 + launch.raised(1, 2, 2),
    )
    return (
        packing.from_slots(dw, launch.layout),
        per_key_head(packing.from_map(dv, launch.layout, v.shape[-1], "keys"), v),
    )


def _launched(
    call: KernelCall, layout: Layout, of_queries: Array, rpb: tuple[Array, ...] = ()
) -> tuple[Launch, Windows]:
    """A launch, and the windows of its tiles."""
    launch = Launch.of(call, layout, of_queries, rpb, call.spec.neighborhood.num_neighbors)
    return launch, Windows(launch.layout)


def _first(windows: Windows) -> tuple[Array, pl.BlockSpec]:
    """`Windows.first`, and its block, all of it."""
    first = jnp.asarray(windows.first)
    return first, pl.BlockSpec(first.shape, lambda *_: (0,) * first.ndim)


def _tables(launch: Launch, rpb: tuple[Array, ...]) -> list[tuple[Array, pl.BlockSpec]]:
    """What is added to logits, and its block; nothing without a bias."""
    if not rpb:
        return []
    table = table_of(launch.layout, rpb, hidden=0.0, factor=1.0)
    return [(table, launch.table_spec(table.shape))]


def _like(x: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _scratch(launch: Launch, windows: Windows) -> list[Any]:
    """Scratch memory for the windows of tiles side by side: `Slots.spread` and `Slots.dense`."""
    tiles, lanes = launch.steps.tiles, launch.layout.logit_lanes
    shapes = (tiles, *windows.spread, lanes), (tiles, windows.dense, lanes)
    return [pltpu.VMEM(shape, jnp.float32) for shape in shapes]


def _slots(launch: Launch, windows: Windows) -> tuple[jax.ShapeDtypeStruct, pl.BlockSpec]:
    """A result that has window slots in the lanes, and its blocks: heads of as many images."""
    layout, slots = launch.layout, windows.num_slots
    shape = (launch.batch, launch.heads, *layout.tokens_of_strip("queries"), slots)
    block = (launch.steps.images, layout.heads, *block_of(layout, "queries"), slots)
    spec = pl.BlockSpec(block, lambda g, b, *_: (b, g, *(0,) * (len(block) - 2)))
    return jax.ShapeDtypeStruct(shape, launch.dtype), spec


def _given(
    x: Float[Array, "B T N K"], launch: Launch, windows: Windows
) -> tuple[Array, pl.BlockSpec]:
    """An argument that is as the results of `_slots`."""
    return packing.as_slots(x, launch.layout), _slots(launch, windows)[1]
