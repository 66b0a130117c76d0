"""The tasks whose steps are compiled: what differs between their rows, as data."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

import natjax
from benchmarks.steps import (
    ADE20K,
    ADE20K_IMAGES,
    COCO_IMAGES,
    IMAGENET,
    IMAGENET_IMAGES,
    step_of,
)
from natjax.backbones.nat import NAT, NATConfig
from natjax.dense.detection.config import (
    BoxHeadConfig,
    MaskRCNNConfig,
    ProposalConfig,
    RPNConfig,
    SamplerConfig,
)
from natjax.dense.segmentation.upernet import UPerNetConfig
from natjax.train.engine.network import split_network
from natjax.train.engine.step import StepSetup
from natjax.train.tasks.classification.config import ClassificationConfig
from natjax.train.tasks.classification.recipes import imagenet_preset
from natjax.train.tasks.classification.task import Classification
from natjax.train.tasks.detection.config import DetectionConfig, ObjectsConfig
from natjax.train.tasks.detection.recipes import RECIPES as COCO_RECIPES
from natjax.train.tasks.detection.recipes import coco_config
from natjax.train.tasks.detection.task import Detection
from natjax.train.tasks.segmentation.config import SegmentationConfig
from natjax.train.tasks.segmentation.recipes import RECIPES, ade20k_config
from natjax.train.tasks.segmentation.task import Segmentation

type Size = tuple[int, int]
type Rows = dict[str, tuple[tuple[int, ...], DTypeLike]]

SMALL = "small"
"""In place of a model's name: one of few blocks, which compiles in seconds."""


@dataclasses.dataclass(frozen=True)
class StepTask:
    """How a task's step is made of a row's model and image size.

    Attributes:
      title: presets and sizes of images of the table, in words.
      preset: (model, height and width) -> the published settings of the run, at that size.
      setup: settings, with the model's name or `SMALL` -> the step.
      rows: height and width -> shape and dtype of the arrays of one example of a training batch.
    """

    title: str
    preset: Callable[[str, Size], Any]
    setup: Callable[[Any], StepSetup]
    rows: Callable[[Size], Rows]


def _imagenet(model: str, size: Size) -> ClassificationConfig:
    preset = imagenet_preset("nat_tiny" if model == SMALL else model)
    return dataclasses.replace(
        preset,
        model=dataclasses.replace(preset.model, name=model),
        data=dataclasses.replace(preset.data, image_size=size[0]),
    )


def _imagenet_step(config: ClassificationConfig) -> StepSetup:
    network = split_network(_small) if config.model.name == SMALL else None
    return step_of(Classification(config, IMAGENET, network), IMAGENET_IMAGES)


def _small() -> NAT:
    config = NATConfig(dim=128, depths=(1,), num_heads=(8,), drop_path=0.1)
    return NAT(config, dtype="bfloat16", rngs=nnx.Rngs(0))


def _ade20k(model: str, size: Size) -> SegmentationConfig:
    published = "upernet_nat_tiny" if model == SMALL else model
    (recipe,) = (recipe for recipe in RECIPES if recipe.model == published)
    preset = ade20k_config(recipe)
    return dataclasses.replace(
        preset,
        model=dataclasses.replace(preset.model, name=model),
        augment=dataclasses.replace(preset.augment, crop=size[0]),
    )


def _ade20k_step(config: SegmentationConfig) -> StepSetup:
    kind = _SmallSegmentation if config.model.name == SMALL else Segmentation
    return step_of(kind(config, ADE20K), ADE20K_IMAGES)


class _SmallSegmentation(Segmentation):
    @functools.cached_property
    def model_config(self) -> UPerNetConfig:
        backbone = NATConfig(
            dim=128, depths=(1, 1), num_heads=(8, 16), num_classes=0, output_norms=True
        )
        return UPerNetConfig(
            backbone=backbone, channels=64, pool_scales=(1, 2), auxiliary_channels=32
        )


def _coco(model: str, size: Size) -> DetectionConfig:
    published = "mask_rcnn_nat_tiny" if model == SMALL else model
    (recipe,) = (recipe for recipe in COCO_RECIPES if recipe.model == published)
    preset = coco_config(recipe)
    return dataclasses.replace(preset, model=dataclasses.replace(preset.model, name=model))


def _coco_step(config: DetectionConfig) -> StepSetup:
    kind = _SmallDetection if config.model.name == SMALL else Detection
    return step_of(kind(config, natjax.labels("coco")), COCO_IMAGES)


class _SmallDetection(Detection):
    @functools.cached_property
    def model_config(self) -> MaskRCNNConfig:
        backbone = NATConfig(
            dim=32,
            depths=(1, 1, 1, 1),
            num_heads=(1, 2, 4, 8),
            kernel_size=3,
            num_classes=0,
            output_norms=True,
        )
        few = ProposalConfig(per_level=64, kept=64)
        return MaskRCNNConfig(
            backbone=backbone,
            channels=32,
            rpn=RPNConfig(
                sampler=SamplerConfig(number=32, positive_fraction=0.5), training=few, inference=few
            ),
            box_head=BoxHeadConfig(linear_channels=64),
            mask_channels=32,
            sampler=SamplerConfig(number=16, positive_fraction=0.25),
        )


def _objects(size: Size) -> Rows:
    places = ObjectsConfig().objects
    return {
        "image": ((*size, 3), jnp.uint8),
        "size": ((2,), jnp.int32),
        "boxes": ((places, 4), jnp.float32),
        "label": ((places,), jnp.int32),
        "valid": ((places,), jnp.bool_),
        "masks": ((places, size[0], size[1] // 8), jnp.uint8),
    }


TASKS = {
    "classification": StepTask(
        "`nat_tiny_imagenet` and `nat_base_imagenet` at 224x224",
        _imagenet,
        _imagenet_step,
        lambda size: {"image": ((*size, 3), jnp.uint8), "label": ((), jnp.int32)},
    ),
    "segmentation": StepTask(
        "`upernet_nat_tiny_ade20k` at 512x512",
        _ade20k,
        _ade20k_step,
        lambda size: {
            "image": ((*size, 3), jnp.uint8),
            "label": (size, jnp.uint8),
            "size": ((2,), jnp.int32),
        },
    ),
    "detection": StepTask("`mask_rcnn_nat_tiny_coco` at 800x1344", _coco, _coco_step, _objects),
}
