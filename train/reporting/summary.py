"""What is about to be trained, on what, and how much memory its state takes: shown at the start."""

import math
from typing import Any

import jax

from natjax.train.cli.models import with_unit
from natjax.train.engine.sharding import describe
from natjax.train.engine.trainer import Trainer
from natjax.train.reporting.mfu import image_flops


def run_summary(trainer: Trainer) -> str:
    """Return model, data, steps, devices and memory of a run, as a table in plain text."""
    return "\n".join(f"{name:<9}{text}" for name, text in _rows(trainer))


def _rows(trainer: Trainer) -> list[tuple[str, str]]:
    config, spec, state = trainer.config, trainer.spec, trainer.compiled.target
    mesh = trainer.mesh
    parameters = sum(math.prod(leaf.shape) for leaf in state.params.values())
    flops = image_flops(config, spec)
    side = config.data.image_size
    total = trainer.total_steps
    epochs = total * config.batch_size / trainer.train_images
    per_device = config.batch_size // mesh.size
    parts = {
        "parameters": memory_per_device(state.params),
        "optimizer": memory_per_device(state.opt),
        "averages": memory_per_device(state.ema),
    }
    named = ", ".join(f"{name} {_bytes(size)}" for name, size in parts.items())
    return [
        ("model", f"{config.model.name}: {parameters:,} parameters, {config.model.dtype}"),
        ("", f"{with_unit(flops)} FLOPs (multiply-adds) an image, 3 times that to train"),
        (
            "data",
            f"{spec.name}: {trainer.train_images:,} images of {side}x{side} to train on,"
            f" {len(spec.class_names)} classes",
        ),
        (
            "run",
            f"{trainer.total_steps:,} steps of {config.batch_size} images, {epochs:.4g} epochs",
        ),
        (
            "devices",
            f"{describe(mesh)}, {per_device} images each",
        ),
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
