"""Pictures of detections: photos with what was found, and pages of it beside the truth."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure

from natjax.train.engine.task import HostBatch
from natjax.train.reporting.curves import INK, save
from natjax.train.tasks.detection.datasets.masks import unpack_masks
from natjax.train.tasks.detection.datasets.registry import Split
from natjax.train.tasks.detection.paste import packed_masks
from natjax.visualize.overlays import draw_objects

_SHOWN = 12
# Side in pixels that images of a page have at least, for names to be read.
_SIDE = 320
LEAST_SCORE = 0.3
"""Score of the objects that are drawn, at least."""

Image = UInt8[np.ndarray, "_ _ 3"]


def draw_found(
    image: Image,
    found: Mapping[str, np.ndarray],
    class_names: tuple[str, ...],
    least_score: float = LEAST_SCORE,
    times: int = 1,
) -> Image:
    """Return an image with the objects that were found in it.

    Args:
      image: Pixels.
      found: ``boxes``, ``scores``, ``labels``, ``masks`` and ``valid`` of one image, as
        `natjax.train.tasks.detection.task.Detection.predict` has them.
      class_names: Name of each class.
      least_score: Of the objects that are drawn.
      times: How many times as large to draw it.
    """
    shown = found["valid"] & (found["scores"] >= least_score)
    image = _enlarged(image, times)
    boxes = times * found["boxes"][shown].astype(np.float32)
    size = image.shape[0], image.shape[1]
    masks = unpack_masks(packed_masks(found["masks"][shown], boxes, size), size)
    return draw_objects(
        image,
        boxes,
        found["labels"][shown],
        class_names,
        masks=masks.astype(bool),
        scores=found["scores"][shown],
    )


def draw_truth(image: Image, split: Split, index: int, times: int = 1) -> Image:
    """Return an image with its objects, crowds left out.

    Args:
      image: Pixels.
      split: The images.
      index: Which of them it is.
      times: How many times as large to draw it.
    """
    objects = split.objects(index)
    objects = objects.take(~objects.crowd)
    masks = [_enlarged(mask, times) for mask in objects.masks]
    return draw_objects(
        _enlarged(image, times),
        times * objects.boxes,
        objects.labels,
        split.classes,
        masks=np.array(masks, bool).reshape(-1, *(times * side for side in image.shape[:2])),
    )


def _enlarged(pixels: np.ndarray, times: int) -> np.ndarray:
    return pixels.repeat(times, axis=0).repeat(times, axis=1)


def plot_sample(
    batch: HostBatch, predicted: HostBatch, split: Split, path: Path, *, title: str
) -> None:
    """Draw images of an evaluation batch twice: with their objects, and with what was found.

    Args:
      batch: The batch; of it ``mask`` and ``id`` are taken.
      predicted: What the network says of it.
      split: The images.
      path: PNG file to write.
      title: Head line of the picture.
    """
    pairs = []
    for row in np.flatnonzero(batch["mask"])[:_SHOWN]:
        index = int(batch["id"][row])
        image = split.image(index)
        times = -(-_SIDE // min(image.shape[:2]))
        found = {name: values[row] for name, values in predicted.items()}
        drawn = draw_found(image, found, split.classes, times=times)
        pairs.append((draw_truth(image, split, index, times), drawn))
    _plot_pairs(pairs, path, title)


def _plot_pairs(pairs: list[tuple[Image, Image]], path: Path, title: str) -> None:
    across = min(3, len(pairs))
    rows = -(-len(pairs) // across)
    shapes: Float[np.ndarray, "N"] = np.array([one.shape[0] / one.shape[1] for one, _ in pairs])
    side = 2.4
    size = (2 * side * across, side * rows * float(shapes.max()) + 0.9)
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(title, color=INK, fontsize=12, fontweight="bold")
    grid = figure.subplots(rows, 2 * across, squeeze=False)
    for axes in grid.ravel():
        axes.axis("off")
    for place, pair in zip(grid.reshape(-1, 2), pairs, strict=False):
        for axes, pixels in zip(place, pair, strict=True):
            axes.imshow(pixels)
    for axes, name in zip(grid[0], ("truth", "found") * across, strict=True):
        axes.set_title(name, fontsize=9, color=INK)
    save(figure, path)
