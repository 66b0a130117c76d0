"""Object detection with masks as a task.

What reads data is imported when it is used, so that steps can be compiled where there is none.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int32, UInt8

import natjax
from natjax.dense.detection.losses import mean_loss
from natjax.dense.detection.targets import Truth
from natjax.train.cluster.processes import Host
from natjax.train.engine.backbone import (
    backbone_group,
    block_counts,
    check_name,
    configured_network,
    network_shape,
    with_whole_parameters,
)
from natjax.train.engine.network import Network, Params, Statistics
from natjax.train.engine.sharding import keep_rows, make_mesh
from natjax.train.engine.task import (
    Batch,
    Evaluator,
    HostBatch,
    InitialWeights,
    Loss,
    ParameterGroup,
    Scores,
    Stages,
    StepKeys,
    Task,
)
from natjax.train.reporting.metrics import Panel, Quantity
from natjax.train.tasks.detection.config import DetectionConfig

if TYPE_CHECKING:
    from natjax.train.data.readable import Readable
    from natjax.train.tasks.detection.datasets.registry import Split

# How names of the backbone begin.
_BACKBONE = "backbone."
# Of ImageNet, of pixels in [0, 255], as the published detectors have it.
_MEAN = (123.675, 116.28, 103.53)
_STD = (58.395, 57.12, 57.375)


class Detection(Task[DetectionConfig]):
    """A box, a class and a mask for every object.

    Training batches have ``image`` uint8 [B, H, W, 3], filled up on the right and below; ``size``
    int32 [B, 2], height and width of the part that is not; and the objects in G places: ``boxes``
    float32 [B, G, 4], ``label`` int32 [B, G], ``valid`` bool [B, G], and ``masks`` uint8
    [B, G, H, W / 8], a bit for each pixel, the leftmost in the highest bit. Evaluation batches have
    ``image``, ``size``, and ``scale`` float32 [B, 2], what the height and the width of the original
    image were multiplied by.

    Args of the constructor: the configuration; names of the classes in place of those of the data.
    """

    unit = "images"
    quantities = {  # noqa: RUF012 - read only
        "loss": Quantity("loss", ".4f"),
        "accuracy": Quantity("boxes right", "6.2%"),
        "box_ap": Quantity("box AP", ".1%"),
        "box_ap50": Quantity("box AP50", ".1%"),
        "mask_ap": Quantity("mask AP", ".1%"),
        "mask_ap50": Quantity("mask AP50", ".1%"),
    }
    panels = (
        Panel("loss", training="loss"),
        Panel("box AP", score="box_ap", percent=True),
        Panel("mask AP", score="mask_ap", percent=True),
    )
    has_own_network: ClassVar[bool] = False

    def __init__(self, config: DetectionConfig, classes: Sequence[str] | None = None):
        super().__init__(config)
        self._classes = classes

    @functools.cached_property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes.

        Raises:
          UserError: there is no such data set, or its files are missing or wrong.
        """
        return self.training.classes if self._classes is None else tuple(self._classes)

    # The network.

    @functools.cached_property
    def model_config(self) -> natjax.MaskRCNNConfig:
        """The shape of the network.

        Raises:
          UserError: there is no detector of that name, or it cannot have the window or dilations.
        """
        model = self.config.model
        check_name(model.name, "detector")
        found = natjax.detector_config(model.name)
        shape = network_shape(model, found.backbone)
        backbone = dataclasses.replace(found.backbone, drop_path=model.drop_path, **shape)
        return dataclasses.replace(found, backbone=backbone, num_classes=len(self.classes))

    def model_builder(self) -> Callable[[], natjax.MaskRCNN]:
        """Return what makes the network of natjax with its parameters drawn."""
        return self.build

    def build(self) -> natjax.MaskRCNN:
        """Return the network with its parameters drawn."""
        model = self.config.model
        return natjax.MaskRCNN(
            self.model_config,
            dtype=jnp.dtype(model.dtype),
            remat=model.remat,
            rngs=nnx.Rngs(self.config.seed),
        )

    @functools.cached_property
    def network(self) -> Network:
        """The network as pure functions."""
        backbone = self.model_config.backbone
        network = configured_network(self.build, self.config.model, backbone, _BACKBONE)
        return with_whole_parameters(network)

    def init(self) -> tuple[Params, Statistics]:
        """Draw parameters and statistics."""
        return self.network.init()

    def prepare(self, batch: Batch, keys: StepKeys) -> tuple[Batch, Batch]:
        """Give each image a random key, from which its boxes are sampled."""
        rows = jnp.arange(len(batch["image"]), dtype=jnp.int32)
        return batch | {"keys": jax.vmap(jax.random.fold_in, (None, 0))(keys.rows, rows)}, {}

    def loss(self, params: Params, statistics: Statistics, batch: Batch, rngs: nnx.Rngs) -> Loss:
        """Return the sum of all losses, times the number of images.

        Each is a mean over all boxes or pixels of the batch, so parts of a batch count by their
        images and not by their boxes.
        """
        images = self.inputs(batch["image"], batch["size"])
        truth = Truth(
            boxes=batch["boxes"],
            labels=batch["label"],
            valid=batch["valid"],
            masks=unpack_masks(batch["masks"], images.shape[2]),
        )
        (losses, scalars), statistics = self.network.apply(
            params,
            statistics,
            images,
            batch["size"],
            truth,
            keys=batch["keys"],
            rngs=rngs,
            train=True,
            method="losses",
        )
        count = len(images)
        return Loss(count * mean_loss(losses), count, statistics, losses | scalars)

    def inputs(
        self, images: UInt8[Array, "B H W 3"], sizes: Int32[Array, "B 2"]
    ) -> Float[Array, "B H W 3"]:
        """Return pixels less the mean of ImageNet, over its deviation; 0 where they fill up.

        Args:
          images: Pixels.
          sizes: Height and width of the part that does not fill up.
        """
        mean, std = (jnp.array(values).reshape(1, 1, 1, 3) for values in (_MEAN, _STD))
        seen = (images.astype(jnp.float32) - mean) / std
        return jnp.where(_inside(images, sizes)[..., None], seen, 0)

    def predict(self, params: Params, statistics: Statistics, batch: Batch) -> Batch:
        """Return the objects of each image in K places, best first, and which of them there are.

        ``boxes`` float32 [B, K, 4] in pixels of the original images, ``scores`` float32 [B, K],
        ``labels`` int32 [B, K], ``masks`` float32 [B, K, M, M], probabilities on a grid in each
        box, and ``valid`` bool [B, K].
        """
        images = self.inputs(batch["image"], batch["size"])
        found, _ = self.network.apply(
            params, statistics, images, batch["size"], scales=batch["scale"]
        )
        return keep_rows(found._asdict())

    def parameter_group(self, name: str, shape: tuple[int, ...]) -> ParameterGroup:
        """Position biases and layer norms are not decayed; all else is, biases and BatchNorm too.

        As published: parameters are left out whose name has ``rpb`` or ``norm`` in it, which those
        of the heads' norms (``bn``) have not.
        """
        del shape
        left_out = "rpb" in name or "norm" in name
        group = ParameterGroup(weight_decay=float(not left_out))
        blocks = block_counts(self.model_config.backbone)
        return backbone_group(group, name, self.config.model, blocks, _BACKBONE)

    @property
    def recomputes(self) -> bool:
        """Whether blocks are computed again in the backward pass."""
        return self.config.model.remat

    def initial_weights(self, source: str, shapes: Mapping[str, tuple[int, ...]]) -> InitialWeights:
        """Read weights of the whole network, or of its backbone, such as a classifier's.

        Layers that depend on the classes are left out where the classes differ, as is all that a
        classifier of images has and a backbone has not, and the other way round.
        """
        from natjax.train.tasks.initial_weights import read_weights

        del shapes
        model = nnx.eval_shape(self.build)
        return InitialWeights(*read_weights(source, self.config.model.name, model))

    # The data.

    @functools.cached_property
    def training(self) -> "Split":
        """The training images."""
        return self._open("train")

    @functools.cached_property
    def held_out(self) -> "Split":
        """The held-out images."""
        return self._open("val")

    def _open(self, split: str) -> "Split":
        from natjax.train.tasks.detection.datasets.registry import open_split

        return open_split(self.config.data, split)

    @functools.cached_property
    def _train_records(self) -> "Readable":
        from natjax.train.tasks.detection.examples import train_records

        return train_records(self.training)

    @functools.cached_property
    def _eval_records(self) -> "Readable":
        from natjax.train.tasks.detection.examples import eval_records

        return eval_records(self.held_out)

    def train_size(self) -> int:
        """Return the number of images that training takes: those with objects."""
        from natjax.train.tasks.detection.datasets.registry import check_same_classes

        check_same_classes(self.training, self.held_out)
        return len(self._train_records)

    def train_batches(self, start: int, host: Host) -> Iterator[HostBatch]:
        """Iterate over training batches from a step on."""
        from natjax.train.tasks.detection.examples import train_batches

        return train_batches(self._train_records, self.config, start, host)

    def input_stages(self) -> Stages:
        """Return what is done with a training image."""
        from natjax.train.tasks.detection.examples import input_stages

        return input_stages(self._train_records, self.config)

    def eval_batches(self, host: Host) -> Iterable[HostBatch]:
        """Return batches of all held-out images, each of images that fill up to one size."""
        from natjax.train.tasks.detection.examples import eval_batches

        devices = make_mesh(self.config.mesh).size
        return eval_batches(self._eval_records, self.config, devices, host)

    # The results.

    def evaluator(self) -> Evaluator:
        """Return what collects the detections of an evaluation."""
        from natjax.train.tasks.detection.evaluator import DetectionEvaluator

        return DetectionEvaluator(self.held_out)

    def unread(self, scores: Scores) -> int:
        """Return how many held-out images an evaluation left out."""
        return len(self._eval_records) - int(scores.values["images"])

    def details(self, scores: Scores) -> Any:
        """Return the table of classes."""
        return scores.detail.table()

    def describe(self) -> list[tuple[str, str]]:
        """Return the lines of model and data."""
        model, data = self.config.model, self.config.data
        return [
            ("model", f"{model.name}, {model.dtype}"),
            (
                "data",
                f"{data.name}: {self.train_size():,} images to train on, {len(self.classes)}"
                " classes",
            ),
        ]

    def title(self, scores: Scores) -> str:
        """Return model, data, and both average precisions."""
        name = f"{self.config.model.name} on {self.config.data.name}"
        values = scores.values
        return (
            f"{name}: box AP {values['box_ap']:.1%}, mask AP {values['mask_ap']:.1%} of"
            f" {values['images']} held-out images"
        )

    def pictures(
        self, folder: Path, scores: Scores, sample: tuple[HostBatch, HostBatch] | None
    ) -> dict[str, Path]:
        """Write the table of classes, all detections, and a page of them beside the truth."""
        from natjax.train.tasks.detection.pictures import plot_sample

        classes, detections = folder / "classes.csv", folder / "detections.json"
        scores.detail.write_classes(classes)
        scores.detail.write_results(detections)
        written = {"classes": classes, "detections": detections}
        if sample is None:
            return written
        page = folder / "predictions.png"
        plot_sample(*sample, self.held_out, page, title=self.title(scores))
        return {"predictions": page, **written}


def unpack_masks(bits: UInt8[Array, "B G H V"], width: int) -> Bool[Array, "B G H W"]:
    """Return masks of one byte for each pixel, from those of one bit.

    Args:
      bits: As `numpy.packbits` makes them of rows of pixels.
      width: Pixels in a row.
    """
    return jnp.unpackbits(bits, axis=-1, count=width).astype(bool)


def _inside(images: Array, sizes: Int32[Array, "B 2"]) -> Bool[Array, "B H W"]:
    """Which pixels do not fill up."""
    rows, columns = (jnp.arange(n, dtype=sizes.dtype) for n in images.shape[1:3])
    in_rows = rows[None, :] < sizes[:, :1]
    in_columns = columns[None, :] < sizes[:, 1:]
    return in_rows[:, :, None] & in_columns[:, None, :]
