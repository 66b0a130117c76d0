"""A detector's inference and training step: images a second, what its parts take, memory.

    python -m benchmarks.detector --model mask_rcnn_nat_tiny --size 800 1344
    python -m benchmarks.detector --model mask_rcnn_nat_tiny --size 800 1344 --step

Parts of inference are measured by themselves, each on the results of the parts before. The RoI
heads read their own regions; what that takes stands under RoIAlign as well, for the regions of one
stage. A step is that of the published recipe in float32, on a batch of noise with 20 objects an
image. Shares are of processor time, which depends less on what else the machine does; memory is the
most that the process had in use during a call.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import natjax
from benchmarks.measured import Measured, measured
from benchmarks.steps import COCO_IMAGES, step_of
from natjax.dense.detection.mask_rcnn import MaskRCNN
from natjax.dense.detection.rpn import propose
from natjax.dense.detection.targets import Regions
from natjax.dense.ops.roi_align import roi_align
from natjax.train.config.settings import MeshConfig
from natjax.train.engine.compile import compile_training
from natjax.train.engine.sharding import make_mesh, put_batch
from natjax.train.tasks.detection.recipes import RECIPES, coco_config
from natjax.train.tasks.detection.task import Detection

_OBJECTS = 20

type Size = tuple[int, int]
type Call = Callable[[], Any]


def inference_parts(model: MaskRCNN, images: jax.Array) -> dict[str, Call]:
    """Calls of the parts of inference, and of the whole, by name."""
    config = model.config
    sizes = jnp.full((len(images), 2), jnp.asarray(images.shape[1:3], jnp.float32))
    scales = jnp.ones_like(sizes)
    head = model.roi_head

    @nnx.jit
    def proposals(model: MaskRCNN, scores: jax.Array, deltas: jax.Array, pyramid: list) -> Any:
        return propose(scores, deltas, model.anchors(pyramid), sizes, config.rpn.inference)

    @nnx.jit
    def read(pyramid: list, boxes: Regions, masks: Regions) -> Any:
        return [
            roi_align(
                pyramid[:4],
                regions.boxes,
                strides=config.strides[:4],
                output_size=bins,
                valid=regions.valid,
            )
            for regions, bins in ((boxes, 7), (masks, 14))
        ]

    backbone = nnx.jit(lambda model, images: model.backbone.features(images))
    neck = nnx.jit(lambda model, maps: model.neck(maps))
    rpn = nnx.jit(lambda model, pyramid: model.rpn_head(pyramid))
    boxes_of = nnx.jit(lambda head, pyramid, regions: head.box_predictions(pyramid, regions, sizes))
    masks_of = nnx.jit(
        lambda head, pyramid, regions, labels: head.mask_probabilities(pyramid, regions, labels)
    )
    select = nnx.jit(lambda head, *found: head.select(*found, sizes, scales))
    whole = nnx.jit(lambda model, images: model(images, sizes))

    maps = backbone(model, images)
    pyramid = neck(model, maps)
    scores, deltas = rpn(model, pyramid)
    found = proposals(model, scores, deltas, pyramid)
    regions = Regions(found.boxes, found.valid)
    predicted = boxes_of(head, pyramid, regions)
    chosen = select(head, *predicted)
    objects = Regions(chosen.boxes, chosen.valid)
    return {
        "whole": lambda: whole(model, images),
        "backbone": lambda: backbone(model, images),
        "pyramid": lambda: neck(model, maps),
        "RPN": lambda: rpn(model, pyramid),
        "suppression of proposals": lambda: proposals(model, scores, deltas, pyramid),
        "RoI heads": lambda: (
            boxes_of(head, pyramid, regions),
            masks_of(head, pyramid, objects, chosen.labels),
        ),
        "of these, RoIAlign": lambda: read(pyramid, regions, objects),
        "suppression of classes": lambda: select(head, *predicted),
    }


def training_step(name: str, size: Size, batch: int) -> Call:
    """A call that takes a step; each goes on from the one before."""
    (recipe,) = (recipe for recipe in RECIPES if recipe.model == name)
    preset = coco_config(recipe)
    config = dataclasses.replace(
        preset,
        init=None,
        batch_size=batch,
        mesh=MeshConfig(data=1),
        model=dataclasses.replace(preset.model, dtype="float32"),
    )
    task = Detection(config, natjax.labels("coco"))
    compiled = compile_training(step_of(task, COCO_IMAGES), make_mesh(config.mesh))
    rows = put_batch(_noise(size, batch, config.data.objects), compiled.batch)
    state = [compiled.init()]

    def step() -> Any:
        state[0], scalars = compiled.train(state[0], rows)
        return scalars

    return step


def _noise(size: Size, batch: int, places: int) -> dict[str, np.ndarray]:
    """A batch of noise with objects that fill their boxes."""
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 1, (batch, places, 2, 2)) * np.asarray(size[::-1])
    low, high = corners.min(axis=-2), corners.max(axis=-2)
    masks = np.zeros((batch, places, *size), bool)
    for row, place in np.ndindex(batch, _OBJECTS):
        (left, top), (right, bottom) = low[row, place].astype(int), high[row, place].astype(int)
        masks[row, place, top : bottom + 1, left : right + 1] = True
    return {
        "image": rng.integers(0, 256, (batch, *size, 3)).astype(np.uint8),
        "size": np.tile(np.asarray(size, np.int32), (batch, 1)),
        "boxes": np.concatenate([low, high + 1], axis=-1).astype(np.float32),
        "label": rng.integers(0, 80, (batch, places)).astype(np.int32),
        "valid": np.tile(np.arange(places) < _OBJECTS, (batch, 1)),
        "masks": np.packbits(masks, axis=-1),
    }


def _measure(calls: dict[str, Call], rounds: int) -> dict[str, list[Measured]]:
    """What calls take, in turns."""
    rows: dict[str, list[Measured]] = {name: [] for name in calls}
    for call in calls.values():
        jax.block_until_ready(call())
    for _ in range(rounds):
        for name, call in calls.items():
            rows[name].append(measured(lambda call=call: jax.block_until_ready(call())))
    return rows


def _print(rows: dict[str, list[Measured]], batch: int) -> None:
    heads = ("part", "CPU s", "share", "s", "images/s", "images/CPU s", "peak GB")
    print("| " + " | ".join(heads) + " |\n|" + " --- |" * len(heads))

    def median(name: str, what: str) -> float:
        return statistics.median(row[what] for row in rows[name])

    whole = median(next(iter(rows)), "cpu_seconds")
    for name in rows:
        seconds, cpu = median(name, "seconds"), median(name, "cpu_seconds")
        cells = [name, f"{cpu:.3f}", f"{cpu / whole:.0%}", f"{seconds:.3f}"]
        cells += [f"{batch / seconds:.3f}", f"{batch / cpu:.3f}"]
        cells.append(f"{median(name, 'peak_bytes') / 1e9:.2f}")
        print("| " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    """Measure what the flags say."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="mask_rcnn_nat_tiny")
    parser.add_argument("--size", type=int, nargs=2, default=(800, 1344), help="height and width")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--step", action="store_true", help="the training step, not inference")
    args = parser.parse_args()
    size = (args.size[0], args.size[1])
    if args.step:
        calls = {"step": training_step(args.model, size, args.batch)}
    else:
        model = natjax.create_detector(args.model, rngs=nnx.Rngs(0))
        images = jax.random.normal(jax.random.key(0), (args.batch, *size, 3))
        calls = inference_parts(model, images)
    print(f"{args.model}, {args.batch} x {size[0]} x {size[1]}, float32, jax {jax.__version__}")
    _print(_measure(calls, args.rounds), args.batch)


if __name__ == "__main__":
    main()
