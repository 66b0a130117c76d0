"""Image classification as a task.

What reads data is imported when it is used, so that steps can be compiled where there is none.
"""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, UInt8

from natjax.backbones.flops import count_flops
from natjax.create import model_config
from natjax.train.cluster.processes import Host
from natjax.train.engine.backbone import (
    backbone_group,
    block_counts,
    build_model,
    configured_network,
    network_shape,
)
from natjax.train.engine.network import Network, Params, Statistics
from natjax.train.engine.sharding import keep_rows
from natjax.train.engine.task import (
    Batch,
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
from natjax.train.tasks.classification.augment.erase import erase
from natjax.train.tasks.classification.augment.mix import draw_mix, mix_images
from natjax.train.tasks.classification.config import ClassificationConfig
from natjax.train.tasks.classification.datasets.registry import (
    LabelledImages,
    get_spec,
    with_classes,
)
from natjax.train.tasks.classification.metrics import (
    ClassificationEvaluator,
    cross_entropy,
    measure_logits,
)

if TYPE_CHECKING:
    from natjax.train.data.datasets import Source


# How many images of a run's pictures show where the network looks, and the names of what it says.
_LOOKED_AT, _ATTENTION = 4, "attention of "


class Classification(Task[ClassificationConfig]):
    """What class an image is of.

    Training batches have ``image`` uint8 [B, H, W, C] and ``label`` int32 [B].

    Args of the constructor: the configuration; a data set and a network in place of the configured
    ones, the network giving logits ``[B, L]`` for normalised images.
    """

    unit = "images"
    quantities = {  # noqa: RUF012 - read only
        "loss": Quantity("loss", ".4f"),
        "accuracy": Quantity("top-1", "6.2%"),
        "top1": Quantity("top-1", ".2%"),
        "top5": Quantity("top-5", ".2%"),
    }
    panels = (
        Panel("cross-entropy (nats)", "loss", "loss", "training (smoothed targets)"),
        Panel("top-1 accuracy", "accuracy", "top1", "training (augmented)", percent=True),
    )

    def __init__(
        self,
        config: ClassificationConfig,
        spec: LabelledImages | None = None,
        network: Network | None = None,
    ):
        if spec is None:
            config = dataclasses.replace(config, data=with_classes(config.data))
        super().__init__(config)
        self.spec = get_spec(config.data) if spec is None else spec
        self._network = network

    @property
    def has_own_network(self) -> bool:
        """Whether the network is not that of the configuration."""
        return self._network is not None

    @functools.cached_property
    def network(self) -> Network:
        """The network.

        Raises:
          UserError: there is none of the configured name, or of the configured shape.
        """
        if self._network is not None:
            return self._network
        model = self.config.model
        return configured_network(self.model_builder(), model, model_config(model.name))

    def model_builder(self) -> Any:
        """Return what makes the network of natjax with its parameters drawn."""
        return build_model(
            self.config.model,
            self.config.seed,
            num_classes=len(self.spec.class_names),
            in_channels=self.spec.channels,
        )

    # The network.

    def init(self) -> tuple[Params, Statistics]:
        """Draw parameters and statistics."""
        return self.network.init()

    def prepare(self, batch: Batch, keys: StepKeys) -> tuple[Batch, Batch]:
        """Draw how the batch is mixed and erased, and give each image its partner."""
        mix = self.config.augment.mix
        rows = {name: jnp.asarray(batch[name]) for name in ("image", "label")}
        whole = {"erase_key": keys.rows}
        if mix.enabled:
            rows |= {f"other_{name}": values[::-1] for name, values in rows.items()}
            pixels, own = draw_mix(keys.batch, mix, *batch["image"].shape[1:3])
            whole |= {"own_pixels": pixels, "own": own}
        return rows | {"row": jnp.arange(batch["label"].shape[0])}, whole

    def inputs(self, batch: Batch) -> Float[Array, "B H W C"]:
        """Return the images of a prepared batch as the network sees them in training."""
        images = batch["image"]
        if "own" in batch:
            images = mix_images(images, batch["other_image"], batch["own_pixels"])
        images = normalize(images, self.spec.mean, self.spec.std)
        if self.config.augment.erase.prob:
            images = erase(images, batch["row"], batch["erase_key"], self.config.augment.erase)
        return images

    def loss(self, params: Params, statistics: Statistics, batch: Batch, rngs: nnx.Rngs) -> Loss:
        """Return the cross-entropy in nats, and ``accuracy`` on the augmented images.

        Of mixed images the accuracy is how often the label with the larger share comes first.
        """
        smoothing, label = self.config.label_smoothing, batch["label"]
        images = self.inputs(batch)
        logits, statistics = self.network.apply(params, statistics, images, rngs=rngs, train=True)
        logits = keep_rows(logits)
        loss = cross_entropy(logits, label, smoothing)
        if "own" in batch:
            # Linear in the target: the same as with the blend of two smoothed targets.
            own, other = batch["own"], batch["other_label"]
            loss = own * loss + (1 - own) * cross_entropy(logits, other, smoothing)
            label = jnp.where(own >= 0.5, label, other)
        hits = (logits.argmax(axis=-1) == label).astype(jnp.float32)
        return Loss(loss.sum(), len(hits), statistics, {"accuracy": (hits.sum(), len(hits))})

    def logits(
        self, params: Params, statistics: Statistics, images: UInt8[Array, "B H W C"]
    ) -> Float[Array, "B L"]:
        """Return logits of pixels, as in evaluation."""
        seen = normalize(images, self.spec.mean, self.spec.std)
        return keep_rows(self.network.apply(params, statistics, seen)[0])

    def predict(self, params: Params, statistics: Statistics, batch: Batch) -> Batch:
        """Return ``probabilities`` of the classes, float32[B, L]."""
        return {"probabilities": jax.nn.softmax(self.logits(params, statistics, batch["image"]))}

    def pictured(self, params: Params, statistics: Statistics, batch: Batch) -> Batch:
        """Return the predictions; of the first images also where their middle looks, by block."""
        from natjax.visualize.attention import attention_maps
        from natjax.visualize.attention_figure import deepest

        found = self.predict(params, statistics, batch)
        if self.has_own_network:
            return found
        images = normalize(batch["image"][:_LOOKED_AT], self.spec.mean, self.spec.std)
        middle = (images.shape[1] // 2, images.shape[2] // 2)
        maps, _ = self.network.apply(params, statistics, images, middle, method=attention_maps)
        return found | {f"{_ATTENTION}{path}": maps[path].mean(axis=1) for path in deepest(maps)}

    def measure(self, params: Params, statistics: Statistics, batch: Batch) -> Batch:
        """Return what `measure_logits` does."""
        logits = self.logits(params, statistics, batch["image"])
        return measure_logits(logits, batch["label"], batch["mask"])

    def parameter_group(self, name: str, shape: tuple[int, ...]) -> ParameterGroup:
        """Matrices and kernels are decayed; position biases where the configuration says so.

        Layers of natjax's own networks may learn slower the earlier they come, or not at all.
        """
        decays = len(shape) > 1
        if name.endswith("rpb") and not self.config.optimizer.decay_bias_tables:
            decays = False
        group = ParameterGroup(weight_decay=float(decays))
        if self.has_own_network:
            return group
        return backbone_group(group, name, self.config.model, self._blocks)

    @property
    def _blocks(self) -> tuple[int, ...]:
        return block_counts(model_config(self.config.model.name))

    @property
    def recomputes(self) -> bool:
        """Whether blocks are computed again in the backward pass."""
        return self.config.model.remat

    def example_flops(self) -> int | None:
        """Return the multiply-adds of one image, counted as in `natjax.model_summary`."""
        if self._network is not None:
            return None
        found = model_config(self.config.model.name)
        model = dataclasses.replace(
            found,
            num_classes=len(self.spec.class_names),
            in_channels=self.spec.channels,
            **network_shape(self.config.model, found),
        )
        return count_flops(model, (self.config.data.image_size,) * 2)

    def initial_weights(self, source: str, shapes: Mapping[str, tuple[int, ...]]) -> InitialWeights:
        """Read weights of the model; the classifier is left out where the classes differ."""
        from natjax.weights.load import fit_arrays, open_weights
        from natjax.weights.structure import num_classes

        found = open_weights(source, models=[self.config.model.name])
        other_classes = num_classes(found) != len(self.spec.class_names)
        arrays, report = fit_arrays(found, shapes, drop_head=other_classes, resize_rpb=True)
        return InitialWeights(arrays, str(report))

    # The data.

    @functools.cached_property
    def _builder(self) -> Any:
        from natjax.train.data.datasets import open_dataset

        return open_dataset(self.spec, self.config.data)

    def source(self, split: str) -> "Source":
        """Return the records of a split; opens the data, preparing them where needed."""
        from natjax.train.data.datasets import open_split

        return open_split(self._builder, split)

    @functools.cached_property
    def _train_source(self) -> "Source":
        return self.source(self.spec.train_split)

    @functools.cached_property
    def _test_source(self) -> "Source":
        return self.source(self.spec.test_split)

    def train_size(self) -> int:
        """Return the number of training images."""
        return len(self._train_source)

    def train_batches(self, start: int, host: Host) -> Iterator[HostBatch]:
        """Iterate over training batches from a step on."""
        from natjax.train.data.pipeline import read
        from natjax.train.tasks.classification.examples import train_images

        config = self.config
        batches = train_images(
            self._train_source,
            self.spec,
            config.data,
            config.augment,
            seed=config.seed,
            batch_size=config.batch_size,
            host=host,
        )
        return read(batches, config.data, start)

    def input_stages(self) -> Stages:
        """Return what is done with a training image."""
        from natjax.train.tasks.classification.examples import input_stages

        config = self.config
        return input_stages(self._train_source, self.spec, config.data, config.augment, config.seed)

    def eval_batches(self, host: Host) -> Iterable[HostBatch]:
        """Return batches of all held-out images."""
        from natjax.train.tasks.classification.examples import test_images

        config, source = self.config, self._test_source
        return test_images(source, self.spec, config.data, batch_size=config.batch_size, host=host)

    # The results.

    def evaluator(self) -> ClassificationEvaluator:
        """Return what adds up an evaluation."""
        return ClassificationEvaluator()

    def unread(self, scores: Scores) -> int:
        """Return how many held-out images an evaluation left out."""
        return len(self._test_source) - int(scores.values["images"])

    def describe(self) -> list[tuple[str, str]]:
        """Return the lines of model and data."""
        model, side = self.config.model, self.config.data.image_size
        return [
            ("model", f"{model.name}, {model.dtype}"),
            (
                "data",
                f"{self.spec.name}: {self.train_size():,} images of {side}x{side} to train on,"
                f" {len(self.spec.class_names)} classes",
            ),
        ]

    def title(self, scores: Scores) -> str:
        """Return model, data and accuracy."""
        name = f"{self.config.model.name} on {self.spec.name}"
        return f"{name}: {scores.values['top1']:.2%} of {scores.values['images']} test images"

    def pictures(
        self, folder: Path, scores: Scores, sample: tuple[HostBatch, HostBatch] | None
    ) -> dict[str, Path]:
        """Write what is taken for what, and a grid of the first test images with predictions."""
        from natjax.train.reporting.confusion import write_counts
        from natjax.train.reporting.confusion_map import plot_confusion
        from natjax.train.tasks.classification.pictures import plot_looks, plot_sample

        names, title = self.spec.class_names, self.title(scores)
        confusion, predictions = folder / "confusion.png", folder / "predictions.png"
        plot_confusion(scores.detail, names, confusion, title=title, unit=self.unit)
        write_counts(scores.detail, names, folder / "confusion.csv", unit=self.unit)
        if sample is None:
            return {"confusion": confusion}
        batch, pictured = sample
        plot_sample(batch, pictured["probabilities"], names, predictions, title)
        maps = {
            name.removeprefix(_ATTENTION): x
            for name, x in pictured.items()
            if name.startswith(_ATTENTION)
        }
        if not maps:
            return {"predictions": predictions, "confusion": confusion}
        attention = folder / "attention.png"
        plot_looks(batch["image"], maps, attention, title)
        return {"predictions": predictions, "attention": attention, "confusion": confusion}


def normalize(
    images: UInt8[Array, "B H W C"] | Float[Array, "B H W C"],
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Float[Array, "B H W C"]:
    """Return ``(image / 255 - mean) / std`` in float32."""
    shape = (1, 1, 1, len(mean))
    scaled = images.astype(jnp.float32) / 255
    return (scaled - jnp.array(mean).reshape(shape)) / jnp.array(std).reshape(shape)
