"""The recipes that the papers' detectors were trained with on COCO, one row a configuration.

All share `coco_config`; the networks' drop path is that of `natjax.detector_config`. Published
scores are of the 5000 validation images of 2017, in percent, not measured by natjax.
"""

import dataclasses

from natjax.train.config.settings import CheckpointConfig, ModelConfig, OptimizerConfig
from natjax.train.tasks.detection.config import DetectionConfig, ObjectsConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """One published configuration.

    Attributes:
      model: Name of the model.
      box_ap: Published average precision of boxes.
      mask_ap: The same of masks.
      drop_path: Chance to skip the last block.
      learning_rate: The peak.
      start_from: Published weights of the backbone that training starts from.
    """

    model: str
    box_ap: float
    mask_ap: float
    drop_path: float
    learning_rate: float
    start_from: str


def _recipe(
    model: str, box_ap: float, mask_ap: float, drop_path: float, learning_rate: float = 1e-4
) -> Recipe:
    # The Large ones start from weights before their fine-tuning on ImageNet-1K.
    start_from = "imagenet22k" if model.endswith("large") else "imagenet1k"
    return Recipe(
        model=model,
        box_ap=box_ap,
        mask_ap=mask_ap,
        drop_path=drop_path,
        learning_rate=learning_rate,
        start_from=start_from,
    )


RECIPES = (
    _recipe("mask_rcnn_nat_mini", 46.5, 41.7, 0.2),
    _recipe("mask_rcnn_nat_tiny", 47.7, 42.6, 0.2),
    _recipe("mask_rcnn_nat_small", 48.4, 43.2, 0.35),
    _recipe("mask_rcnn_dinat_mini", 47.2, 42.5, 0.2),
    _recipe("mask_rcnn_dinat_tiny", 48.6, 43.5, 0.2),
    _recipe("mask_rcnn_dinat_small", 49.3, 44.0, 0.35),
    _recipe("mask_rcnn_dinat_s_tiny", 46.6, 42.1, 0.2),
    _recipe("mask_rcnn_dinat_s_small", 48.6, 43.5, 0.35),
    _recipe("cascade_mask_rcnn_nat_mini", 50.3, 43.6, 0.2),
    _recipe("cascade_mask_rcnn_nat_tiny", 51.4, 44.5, 0.3),
    _recipe("cascade_mask_rcnn_nat_small", 52.0, 44.9, 0.3),
    _recipe("cascade_mask_rcnn_nat_base", 52.3, 45.1, 0.5),
    _recipe("cascade_mask_rcnn_dinat_mini", 51.2, 44.4, 0.2),
    _recipe("cascade_mask_rcnn_dinat_tiny", 52.2, 45.1, 0.3),
    _recipe("cascade_mask_rcnn_dinat_small", 52.9, 45.8, 0.5),
    _recipe("cascade_mask_rcnn_dinat_base", 53.4, 46.2, 0.6, 7.5e-5),
    _recipe("cascade_mask_rcnn_dinat_large", 55.3, 47.8, 0.6, 7.5e-5),
    _recipe("cascade_mask_rcnn_dinat_s_tiny", 51.0, 44.1, 0.3),
    _recipe("cascade_mask_rcnn_dinat_s_small", 52.3, 45.2, 0.5),
    _recipe("cascade_mask_rcnn_dinat_s_base", 52.6, 45.3, 0.6, 7.5e-5),
    _recipe("cascade_mask_rcnn_dinat_s_large", 54.8, 47.2, 0.6, 5e-5),
)


def preset_name(recipe: Recipe) -> str:
    """Return the name of a recipe's preset."""
    return f"{recipe.model}_coco"


def describe(recipe: Recipe) -> str:
    """Return the help text of a recipe's preset."""
    return (
        f"{recipe.model} on COCO, as published (box AP {recipe.box_ap}, mask AP"
        f" {recipe.mask_ap}).\n\nStarts from published weights of the backbone, or from what --init"
        " names; --data.dir is the folder of COCO's images and annotations."
    )


def coco_config(recipe: Recipe) -> DetectionConfig:
    """Return the settings of a recipe: 36 epochs, the "3x schedule".

    Published runs computed in float16 with a loss scale, or in float32 (DiNAT-Large); these compute
    in bfloat16, which needs no loss scale.
    """
    return DetectionConfig(
        model=ModelConfig(name=recipe.model, drop_path=recipe.drop_path, dtype="bfloat16"),
        data=ObjectsConfig(threads=8),
        optimizer=OptimizerConfig(
            learning_rate=recipe.learning_rate,
            schedule="steps",
            step_epochs=(27.0, 33.0),
            step_factor=0.1,
            warmup_steps=500,
            warmup_ratio=1e-3,
            weight_decay=0.05,
            clip_norm=None,
        ),
        # An epoch has 7329 steps.
        checkpoint=CheckpointConfig(every=1050),
        batch_size=16,
        epochs=36.0,
        log_every=50,
        eval_every=7350,
        ema_decay=None,
        init=recipe.start_from,
    )
