"""What is about to be trained, on what, and how much memory its state takes: shown at the start."""

import math
from typing import Any

import jax

from natjax.cli.models import with_unit
from natjax.train.engine.sharding import describe
from natjax.train.engine.trainer import Trainer


def run_summary(trainer: Trainer) -> str:
    """Return model, data, steps, devices and memory of a run, as a table in plain text."""
    return "\n".join(f"{name:<9}{text}" for name, text in summary_rows(trainer))


def summary_rows(trainer: Trainer) -> list[tuple[str, str]]:
    """Return the lines of `run_summary`: a heading, and what it is about."""
    config, task, state = trainer.config, trainer.task, trainer.compiled.target
    parameters = sum(math.prod(leaf.shape) for leaf in state.params.values())
    flops, total = task.example_flops(), trainer.total_steps
    size = f"{parameters:,} parameters"
    if flops is not None:
        size += f"; {with_unit(flops)} FLOPs (multiply-adds) for each of the {task.unit},"
        size += " 3 times that to train"
    epochs = f"{trainer.epoch(total):.4g} epochs"
    per_device = config.batch_size // trainer.mesh.size
    rows = [
        *task.describe(),
        ("size", size),
        ("run", f"{total:,} steps of {config.batch_size} {task.unit}, {epochs}"),
        ("devices", f"{describe(trainer.mesh)}, {per_device} {task.unit} each"),
    ]
    parts = {
        "parameters": memory_per_device((state.params, state.statistics)),
        "optimizer": memory_per_device(state.opt),
        "averages": memory_per_device(state.ema),
    }
    named = ", ".join(f"{name} {_bytes(size)}" for name, size in parts.items())
    return [
        *rows,
        ("memory", f"{_bytes(sum(parts.values()))} a device: {named}; without activations"),
    ]


def memory_per_device(tree: Any) -> int:
    """Return the bytes that a tree of shapes with shardings takes on one device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def _bytes(count: float | int) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
