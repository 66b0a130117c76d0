"""What can be trained by name: a demonstration, and the published recipes."""

from typing import TYPE_CHECKING

from natjax.train.config.settings import CheckpointConfig, ModelConfig, OptimizerConfig
from natjax.train.tasks.definition import Preset, TaskDefinition, preset_of
from natjax.train.tasks.segmentation.config import (
    AugmentConfig,
    LabelMapsConfig,
    SegmentationConfig,
)
from natjax.train.tasks.segmentation.recipes import (
    RECIPES,
    Recipe,
    ade20k_config,
    describe,
    preset_name,
)

if TYPE_CHECKING:
    from natjax.train.tasks.segmentation.task import Segmentation


def segment_demo() -> SegmentationConfig:
    """Handwritten digits on photographs, in minutes on a CPU; needs no download.

    Every pixel is of the photograph or of one of ten digits. All changes of training images are on,
    but for mirror images, which would turn digits into what is none.

    Command: ``natjax train segment_demo``.
    Cost: 4 minutes of processor time (measured).
    Scores: mIoU 44.8 % of the 400 held-out scenes (measured, averaged weights).
    """
    return SegmentationConfig(
        model=ModelConfig(name="upernet_nat_micro", kernel_size=5, init="fan_in"),
        data=LabelMapsConfig(name="digit_scenes"),
        augment=AugmentConfig(
            frame=(64, 64), scale=(0.75, 1.5), crop=64, category_limit=0.95, hflip=0.0
        ),
        optimizer=OptimizerConfig(
            learning_rate=3e-3,
            schedule="poly",
            final_learning_rate=0.0,
            warmup_steps=50,
            weight_decay=0.05,
        ),
        checkpoint=CheckpointConfig(every=100),
        batch_size=32,
        steps=600,
        log_every=20,
        eval_every=300,
    )


def _published(recipe: Recipe) -> Preset:
    return Preset(make=lambda: ade20k_config(recipe), description=describe(recipe))


PRESETS: dict[str, Preset] = {"segment_demo": preset_of(segment_demo)} | {
    preset_name(recipe): _published(recipe) for recipe in RECIPES
}


def _build(config: SegmentationConfig) -> "Segmentation":
    from natjax.train.tasks.segmentation.task import Segmentation

    return Segmentation(config)


TASK = TaskDefinition(name="segmentation", config=SegmentationConfig, presets=PRESETS, build=_build)
