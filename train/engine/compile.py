"""The jitted functions of a run, with their shardings."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, auto_axes, use_abstract_mesh

from natjax.train.engine.finite import Step
from natjax.train.engine.sharding import batch_sharding, replicated, state_sharding
from natjax.train.engine.state import TrainState
from natjax.train.engine.step import StepSetup, train_step
from natjax.train.engine.task import Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompiledEvaluation:
    """What evaluation needs; functions are compiled when first called.

    Attributes:
      batch: Sharding of every array of a batch.
      measure: ``(params, statistics, batch) -> measured``, whole on every device.
      pictured: ``(params, statistics, batch) -> what pictures need``, whole on every device.
    """

    batch: NamedSharding
    measure: Callable[..., Any]
    pictured: Callable[..., Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compiled(CompiledEvaluation):
    """Functions over sharded arrays.

    Attributes:
      target: Shape, type and sharding of each array of the state, which restoring needs.
      init: ``() -> TrainState``; no device ever holds more than its part.
      train: ``(state, batch) -> (state, scalars)``; donates `state`.
    """

    target: TrainState
    init: Callable[[], TrainState]
    train: Callable[..., Any]


def compile_evaluation(task: Task[Any], mesh: Mesh, weights: Any = None) -> CompiledEvaluation:
    """Return evaluation on `mesh`.

    Args:
      task: The task.
      mesh: The devices.
      weights: Shardings of parameters and statistics; None for all of them whole on every device.
    """
    batch, whole = batch_sharding(mesh), replicated(mesh)
    params, statistics = (whole, whole) if weights is None else weights
    jitted = functools.partial(
        jax.jit, in_shardings=(params, statistics, batch), out_shardings=whole
    )
    return CompiledEvaluation(
        batch=batch,
        measure=jitted(_on(mesh, task.measure, whole)),
        pictured=jitted(_on(mesh, task.pictured, whole)),
    )


def compile_training(setup: StepSetup, mesh: Mesh, step: Step = train_step) -> Compiled:
    """Return the functions of a run on `mesh`; shapes are worked out, nothing is computed.

    Args:
      setup: Constants of the run.
      mesh: The devices.
      step: What `train` does.
    """
    abstract = jax.eval_shape(setup.init)
    shardings, whole = state_sharding(abstract, mesh), replicated(mesh)
    evaluation = compile_evaluation(setup.task, mesh, (shardings.params, shardings.statistics))
    return Compiled(
        target=jax.tree.map(_with_sharding, abstract, shardings),
        init=jax.jit(setup.init, out_shardings=shardings, compiler_options=_once(mesh)),
        train=jax.jit(
            _on(mesh, functools.partial(step, setup), (shardings, whole)),
            in_shardings=(shardings, evaluation.batch),
            out_shardings=(shardings, whole),
            donate_argnums=0,
            compiler_options=_in_order(mesh) if setup.task.recomputes else None,
        ),
        **{x.name: getattr(evaluation, x.name) for x in dataclasses.fields(CompiledEvaluation)},
    )


def _on(mesh: Mesh, function: Callable[..., Any], results: Any) -> Callable[..., Any]:
    """Let what is traced know the mesh: attention asks for it.

    Inside, the compiler alone decides where arrays are, also where the axes of the mesh are
    explicit, as those of `jax.make_mesh` are by default; `results` then says where the results go.
    """
    explicit = tuple(
        name
        for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
        if kind == AxisType.Explicit
    )
    if explicit:
        function = auto_axes(function, axes=explicit, out_sharding=results)

    def traced(*args: Any) -> Any:
        with use_abstract_mesh(mesh.abstract_mesh):
            return function(*args)

    return traced


def _once(mesh: Mesh) -> dict[str, int] | None:
    # On the CPU, optimising code that runs once takes far longer than running it.
    return {"xla_backend_optimization_level": 0} if mesh.devices.flat[0].platform == "cpu" else None


def _in_order(mesh: Mesh) -> dict[str, bool] | None:
    # XLA's scheduler for GPUs hides the latency of exchanges by computing early what it can, blocks
    # for the second time among it, all of which then wait in memory for their turn.
    is_gpu = mesh.devices.flat[0].platform in ("gpu", "cuda")
    return {"xla_gpu_enable_latency_hiding_scheduler": False} if is_gpu else None


def _with_sharding(leaf: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
