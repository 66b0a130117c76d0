"""What can be trained by name: a demonstration, and the published recipes."""

from typing import TYPE_CHECKING

from natjax.train.config.settings import CheckpointConfig, ModelConfig, OptimizerConfig
from natjax.train.tasks.definition import Preset, TaskDefinition, preset_of
from natjax.train.tasks.detection.config import AugmentConfig, DetectionConfig, ObjectsConfig
from natjax.train.tasks.detection.recipes import (
    RECIPES,
    Recipe,
    coco_config,
    describe,
    preset_name,
)

if TYPE_CHECKING:
    from natjax.train.tasks.detection.task import Detection


def detect_demo() -> DetectionConfig:
    """Handwritten digits on photographs, in minutes on a CPU; needs no download.

    Every digit has a box, a class and a mask.

    Command: ``natjax train detect_demo``.
    Cost: 6 minutes of processor time, evaluations included (measured).
    Scores: box AP 46.0 %, mask AP 43.0 % of the 300 held-out scenes (measured, averaged weights).
    """
    return DetectionConfig(
        model=ModelConfig(name="mask_rcnn_micro", init="fan_in"),
        data=ObjectsConfig(name="digit_scenes", objects=8),
        augment=AugmentConfig(
            frame=(128, 128), sides=(128,), crop=0.0, hflip=0.0, buckets=((128, 128),)
        ),
        optimizer=OptimizerConfig(
            learning_rate=2e-3, final_learning_rate=0.0, warmup_steps=50, weight_decay=0.05
        ),
        checkpoint=CheckpointConfig(every=100),
        batch_size=16,
        steps=400,
        log_every=10,
        eval_every=200,
    )


def _published(recipe: Recipe) -> Preset:
    return Preset(make=lambda: coco_config(recipe), description=describe(recipe))


PRESETS: dict[str, Preset] = {"detect_demo": preset_of(detect_demo)} | {
    preset_name(recipe): _published(recipe) for recipe in RECIPES
}


def _build(config: DetectionConfig) -> "Detection":
    from natjax.train.tasks.detection.task import Detection

    return Detection(config)


TASK = TaskDefinition(name="detection", config=DetectionConfig, presets=PRESETS, build=_build)
