"""The jitted functions of a run, with their shardings."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, use_abstract_mesh

from natjax.train.engine.finite import Step
from natjax.train.engine.functional import FunctionalModel
from natjax.train.engine.sharding import batch_sharding, replicated, state_sharding
from natjax.train.engine.state import TrainState, init_state
from natjax.train.engine.step import Network, Task, eval_step, probabilities, train_step


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluator:
    """What evaluation needs.

    Attributes:
      batch: Sharding of every array of a batch.
      evaluate: ``(params, batch) -> sums``.
    """

    batch: NamedSharding
    evaluate: Callable[..., Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compiled(Evaluator):
    """Functions over sharded arrays; each is compiled when first called.

    Attributes:
      target: Shape, type and sharding of each array of the state, which restoring needs.
      init: ``() -> TrainState``; no device ever holds more than its part.
      train: ``(state, batch) -> (state, scalars)``; donates `state`.
      probabilities: ``(params, images) -> float32[B, L]``, whole on every device.
    """

    target: TrainState
    init: Callable[[], TrainState]
    train: Callable[..., Any]
    probabilities: Callable[..., Any]


def compile_evaluator(network: Network, mesh: Mesh) -> Evaluator:
    """Return evaluation on `mesh` with every parameter whole on every device."""
    batch, whole = batch_sharding(mesh), replicated(mesh)
    evaluate = jax.jit(
        _on(mesh, eval_step, network), in_shardings=(whole, batch), out_shardings=whole
    )
    return Evaluator(batch=batch, evaluate=evaluate)


def split_by_rows(model: FunctionalModel, mesh: Mesh) -> FunctionalModel:
    """Return the model with its logits held to the devices that have their images.

    Left alone, the compiler reads a classifier that is split over "fsdp" as one whose classes are:
    it then gathers the features of all rows instead of the classifier.

    Args:
      model: The network.
      mesh: The devices.
    """

    def apply(*args: Any, **options: Any) -> jax.Array:
        logits = model.apply(*args, **options)
        return jax.lax.with_sharding_constraint(logits, batch_sharding(mesh))

    return dataclasses.replace(model, apply=apply)


def compile_task(task: Task, mesh: Mesh, step: Step = train_step) -> Compiled:
    """Return the functions of `task` on `mesh`; shapes are worked out, nothing is computed.

    Args:
      task: Constants of the run.
      mesh: The devices.
      step: What `train` does.
    """
    model = split_by_rows(task.network.model, mesh)
    task = dataclasses.replace(task, network=dataclasses.replace(task.network, model=model))
    init = functools.partial(
        init_state, task.network.model, task.optimizer, ema=task.ema_decay is not None
    )
    abstract = jax.eval_shape(init)
    shardings, batch, whole = state_sharding(abstract, mesh), batch_sharding(mesh), replicated(mesh)
    return Compiled(
        target=jax.tree.map(_with_sharding, abstract, shardings),
        batch=batch,
        init=jax.jit(init, out_shardings=shardings, compiler_options=_once(mesh)),
        train=jax.jit(
            _on(mesh, step, task),
            in_shardings=(shardings, batch),
            out_shardings=(shardings, whole),
            donate_argnums=0,
            compiler_options=_in_order(mesh) if task.remat else None,
        ),
        evaluate=jax.jit(
            _on(mesh, eval_step, task.network),
            in_shardings=(shardings.params, batch),
            out_shardings=whole,
        ),
        probabilities=jax.jit(
            _on(mesh, probabilities, task.network),
            in_shardings=(shardings.params, batch),
            out_shardings=whole,
        ),
    )


def _on(mesh: Mesh, function: Callable[..., Any], constant: Any) -> Callable[..., Any]:
    """Bind the first argument, and let what is traced know the mesh: attention asks for it."""

    def traced(*args: Any) -> Any:
        with use_abstract_mesh(mesh.abstract_mesh):
            return function(constant, *args)

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
