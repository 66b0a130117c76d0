"""Semantic segmentation as a task.

What reads data is imported when it is used, so that steps can be compiled where there is none.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int32, UInt8

import natjax
from natjax.dense.segmentation.inference import multi_scale, sliding_window, whole_image
from natjax.dense.segmentation.loss import IGNORE, segmentation_loss
from natjax.summary import count_flops
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
    HostBatch,
    InitialWeights,
    Loss,
    ParameterGroup,
    Scores,
    Stages,
    Task,
)
from natjax.train.reporting.metrics import Panel, Quantity
from natjax.train.tasks.segmentation.config import SegmentationConfig
from natjax.train.tasks.segmentation.datasets.registry import LabelMaps, get_label_maps
from natjax.train.tasks.segmentation.evaluator import SegmentationEvaluator

if TYPE_CHECKING:
    from natjax.train.data.readable import Readable

_SHOWN = 12
# How names of the backbone begin.
_BACKBONE = "backbone."


class Segmentation(Task[SegmentationConfig]):
    """A class for every pixel.

    Training batches have ``image`` uint8 [B, S, S, 3], ``label`` uint8 [B, S, S] and ``size`` int32
    [B, 2], the part that is not filled up. Evaluation batches have images of one size, as
    `natjax.train.tasks.segmentation.examples` says.

    Args of the constructor: the configuration; a data set in place of the configured one.
    """

    unit = "images"
    quantities = {  # noqa: RUF012 - read only
        "loss": Quantity("loss", ".4f"),
        "accuracy": Quantity("pixels right", "6.2%"),
        "miou": Quantity("mIoU", ".2%"),
        "macc": Quantity("mAcc", ".2%"),
        "aacc": Quantity("aAcc", ".2%"),
    }
    panels = (
        Panel("cross-entropy (nats)", training="loss_decode"),
        Panel("mIoU", score="miou", percent=True),
    )

    def __init__(self, config: SegmentationConfig, maps: LabelMaps | None = None):
        super().__init__(config)
        self._maps = maps

    @functools.cached_property
    def maps(self) -> LabelMaps:
        """The data set."""
        return get_label_maps(self.config.data) if self._maps is None else self._maps

    # The network.

    @functools.cached_property
    def model_config(self) -> natjax.UPerNetConfig:
        """The shape of the network.

        Raises:
          UserError: there is no segmentor of that name, or it cannot have the window or dilations.
        """
        model = self.config.model
        check_name(model.name, "segmentor")
        found = natjax.segmentor_config(model.name)
        shape = network_shape(model, found.backbone)
        backbone = dataclasses.replace(found.backbone, drop_path=model.drop_path, **shape)
        classes = len(self.maps.class_names)
        return dataclasses.replace(found, backbone=backbone, num_classes=classes)

    has_own_network: ClassVar[bool] = False

    def model_builder(self) -> Callable[[], natjax.UPerNet]:
        """Return what makes the network of natjax with its parameters drawn."""
        return self.build

    def build(self) -> natjax.UPerNet:
        """Return the network with its parameters drawn."""
        model = self.config.model
        return natjax.UPerNet(
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

    def loss(self, params: Params, statistics: Statistics, batch: Batch, rngs: nnx.Rngs) -> Loss:
        """Return the cross-entropy of both heads, in nats, summed over pixels.

        Weighed by all pixels, those without a label too, as the published models were trained.
        """
        images = self.inputs(batch["image"], batch["size"])
        (logits, auxiliary), statistics = self.network.apply(
            params, statistics, images, rngs=rngs, train=True, method="heads"
        )
        logits, auxiliary = keep_rows((logits, auxiliary))
        weight_of = self.model_config.auxiliary_weight
        total, weight, scalars = segmentation_loss(
            logits, auxiliary, batch["label"], auxiliary_weight=weight_of
        )
        return Loss(total, weight, statistics, scalars)

    def inputs(
        self, images: UInt8[Array, "B H W 3"], sizes: Int32[Array, "B 2"] | None = None
    ) -> Float[Array, "B H W 3"]:
        """Return pixels less the data set's mean, over its deviation; 0 where they fill up.

        Args:
          images: Pixels.
          sizes: Height and width of the part that does not fill up; None for all.
        """
        mean, std = (
            jnp.array(values).reshape(1, 1, 1, 3) for values in (self.maps.mean, self.maps.std)
        )
        seen = (images.astype(jnp.float32) / 255 - mean) / std
        if sizes is None:
            return seen
        return jnp.where(_inside(images, sizes)[..., None], seen, 0)

    def predict(self, params: Params, statistics: Statistics, batch: Batch) -> Batch:
        """Return ``classes`` of the pixels of the label maps' size, uint8[B, H, W]."""
        data, size = self.config.data, batch["label"].shape[1:3]
        views = [self.inputs(batch[f"image{i}"]) for i in range(len(data.scales))]

        def network(images: Array) -> Array:
            return keep_rows(self.network.apply(params, statistics, images)[0])

        def probabilities(images: Array) -> Array:
            if data.window is None:
                return whole_image(network, images, size)
            return sliding_window(network, images, size, window=data.window, stride=data.stride)

        found = multi_scale(probabilities, views, flip=data.flip)
        return {"classes": jnp.argmax(found, axis=-1).astype(jnp.uint8)}

    def measure(self, params: Params, statistics: Statistics, batch: Batch) -> Batch:
        """Return ``counts``: pixels of each label (rows) and prediction; and ``images``."""
        guesses = self.predict(params, statistics, batch)["classes"]
        classes = len(self.maps.class_names)
        labels, guesses = batch["label"].astype(jnp.int32), guesses.astype(jnp.int32)
        counted = (labels != IGNORE) & batch["mask"][:, None, None]
        pairs = jnp.where(counted, labels * classes + guesses, classes * classes)
        counts = jnp.bincount(pairs.ravel(), length=classes * classes + 1)[:-1]
        images = jnp.sum(batch["mask"], dtype=jnp.int32)
        return {"counts": counts.reshape(classes, classes), "images": images}

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

    def example_flops(self) -> int | None:
        """Return the multiply-adds of one crop, counted as in `natjax.model_summary`."""
        return count_flops(self.model_config, (self.config.augment.crop,) * 2)

    def initial_weights(self, source: str, shapes: Mapping[str, tuple[int, ...]]) -> InitialWeights:
        """Read weights of the whole network, or of its backbone, such as a classifier's.

        Classifiers are left out where the classes differ, as is all that a classifier of images
        has and a backbone has not, and the other way round.
        """
        from natjax.train.tasks.initial_weights import read_weights

        del shapes
        model = nnx.eval_shape(self.build)
        return InitialWeights(*read_weights(source, self.config.model.name, model))

    # The data.

    @functools.cached_property
    def _train_records(self) -> "Readable":
        from natjax.train.tasks.segmentation.examples import readable

        return readable(self.maps.open("train"), self.maps, "training")

    @functools.cached_property
    def _held_out(self) -> "Readable":
        from natjax.train.tasks.segmentation.examples import readable

        return readable(self.maps.open("val"), self.maps, "held-out")

    def train_size(self) -> int:
        """Return the number of training images."""
        return len(self._train_records)

    def train_batches(self, start: int, host: Host) -> Iterator[HostBatch]:
        """Iterate over training batches from a step on."""
        from natjax.train.data.pipeline import read, train_dataset
        from natjax.train.tasks.segmentation.examples import TrainExample

        config = self.config
        batches = train_dataset(
            self._train_records,
            TrainExample(config.augment),
            seed=config.seed,
            batch_size=config.batch_size,
            host=host,
        )
        return read(batches, config.data, start)

    def input_stages(self) -> Stages:
        """Return what is done with a training image."""
        from natjax.train.tasks.segmentation.examples import input_stages

        return input_stages(self._train_records, self.config.augment, self.config.seed)

    def eval_batches(self, host: Host) -> Iterable[HostBatch]:
        """Return batches of all held-out images, each of images of one size."""
        from natjax.train.tasks.segmentation.examples import eval_batches

        config = self.config
        return eval_batches(
            self._held_out,
            config.augment,
            config.data.scales,
            config.data,
            batch_size=config.batch_size,
            devices=make_mesh(config.mesh).size,
            host=host,
        )

    # The results.

    def evaluator(self) -> SegmentationEvaluator:
        """Return what adds up an evaluation."""
        return SegmentationEvaluator(len(self.maps.class_names))

    def unread(self, scores: Scores) -> int:
        """Return how many held-out images an evaluation left out."""
        return len(self._held_out) - int(scores.values["images"])

    def details(self, scores: Scores) -> Any:
        """Return the table of classes."""
        from natjax.train.tasks.segmentation.scores import class_table

        return class_table(scores.detail, self.maps.class_names)

    def describe(self) -> list[tuple[str, str]]:
        """Return the lines of model and data."""
        model, crop = self.config.model, self.config.augment.crop
        return [
            ("model", f"{model.name}, {model.dtype}"),
            (
                "data",
                f"{self.maps.name}: {self.train_size():,} images to train on, crops of"
                f" {crop}x{crop}, {len(self.maps.class_names)} classes",
            ),
        ]

    def title(self, scores: Scores) -> str:
        """Return model, data and mIoU."""
        name = f"{self.config.model.name} on {self.maps.name}"
        values = scores.values
        return f"{name}: mIoU {values['miou']:.2%} of {values['images']} held-out images"

    def pictures(
        self, folder: Path, scores: Scores, sample: tuple[HostBatch, HostBatch] | None
    ) -> dict[str, Path]:
        """Write the table of classes, what is taken for what, and a page of results."""
        from natjax.train.reporting.confusion import confusion_of, write_counts
        from natjax.train.reporting.confusion_map import plot_confusion
        from natjax.train.tasks.segmentation.pictures import plot_results
        from natjax.train.tasks.segmentation.scores import write_class_scores

        names, title = self.maps.class_names, self.title(scores)
        written = {"confusion": folder / "confusion.png", "classes": folder / "classes.csv"}
        confusion = confusion_of(scores.detail.counts)
        write_class_scores(scores.detail, names, written["classes"])
        write_counts(confusion, names, folder / "confusion.csv", unit="pixels")
        plot_confusion(confusion, names, written["confusion"], title=title, unit="pixels")
        if sample is None:
            return written
        batch, predicted = sample
        shown = [i for i, counts in enumerate(batch["mask"]) if counts][:_SHOWN]
        page = folder / "predictions.png"
        plot_results(
            [batch["image0"][i] for i in shown],
            [batch["label"][i] for i in shown],
            [predicted["classes"][i] for i in shown],
            names,
            page,
            title=title,
        )
        return {"predictions": page, **written}


def _inside(images: Array, sizes: Int32[Array, "B 2"]) -> Bool[Array, "B H W"]:
    """Which pixels do not fill up."""
    rows, columns = (jnp.arange(n, dtype=sizes.dtype) for n in images.shape[1:3])
    in_rows = rows[None, :] < sizes[:, :1]
    in_columns = columns[None, :] < sizes[:, 1:]
    return in_rows[:, :, None] & in_columns[:, None, :]
