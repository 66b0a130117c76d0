"""The recipes that the papers' UPerNets were trained with on ADE20K, one row a configuration.

All share `ade20k_config`; the networks' drop path is that of `natjax.segmentor_config`. Published
scores are of the validation images, in percent, not measured by natjax.
"""

import dataclasses

from natjax.train.config.settings import CheckpointConfig, ModelConfig, OptimizerConfig
from natjax.train.tasks.segmentation.config import (
    AugmentConfig,
    LabelMapsConfig,
    SegmentationConfig,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """One published configuration.

    Attributes:
      model: Name of the model.
      miou: Published mIoU of whole images.
      multi_scale: The same, averaged over six scales and mirror images.
      drop_path: Chance to skip the last block.
      start_from: Published weights of the backbone that training starts from.
    """

    model: str
    miou: float
    multi_scale: float
    drop_path: float
    start_from: str


def _recipe(model: str, miou: float, multi_scale: float, drop_path: float) -> Recipe:
    # The Large ones start from weights before their fine-tuning on ImageNet-1K.
    start_from = "imagenet22k" if model.endswith("large") else "imagenet1k"
    return Recipe(
        model=f"upernet_{model}",
        miou=miou,
        multi_scale=multi_scale,
        drop_path=drop_path,
        start_from=start_from,
    )


RECIPES = (
    _recipe("nat_mini", 45.1, 46.4, 0.2),
    _recipe("nat_tiny", 47.1, 48.4, 0.3),
    _recipe("nat_small", 48.0, 49.5, 0.5),
    _recipe("nat_base", 48.5, 49.7, 0.5),
    _recipe("dinat_mini", 45.8, 47.2, 0.2),
    _recipe("dinat_tiny", 47.8, 48.8, 0.3),
    _recipe("dinat_small", 48.9, 49.9, 0.5),
    _recipe("dinat_base", 49.6, 50.4, 0.5),
    _recipe("dinat_large", 54.0, 54.9, 0.3),
    _recipe("dinat_s_tiny", 46.0, 47.4, 0.3),
    _recipe("dinat_s_small", 48.6, 49.9, 0.3),
    _recipe("dinat_s_base", 49.4, 50.2, 0.3),
    _recipe("dinat_s_large", 53.4, 54.6, 0.3),
)


def preset_name(recipe: Recipe) -> str:
    """Return the name of a recipe's preset."""
    return f"{recipe.model}_ade20k"


def describe(recipe: Recipe) -> str:
    """Return the help text of a recipe's preset."""
    return (
        f"{recipe.model} on ADE20K, as published (mIoU {recipe.miou}, multi-scale"
        f" {recipe.multi_scale}).\n\nStarts from published weights of the backbone, or from what"
        " --init names; --data.dir is the folder ADEChallengeData2016."
    )


def ade20k_config(recipe: Recipe) -> SegmentationConfig:
    """Return the settings of a recipe.

    Published runs computed in float16 with a loss scale, or in float32 (DiNAT-Large); these compute
    in bfloat16, which needs no loss scale.
    """
    return SegmentationConfig(
        model=ModelConfig(name=recipe.model, drop_path=recipe.drop_path, dtype="bfloat16"),
        data=LabelMapsConfig(threads=8),
        augment=AugmentConfig(),
        optimizer=OptimizerConfig(
            learning_rate=6e-5,
            schedule="poly",
            final_learning_rate=0.0,
            power=1.0,
            decay_from_start=True,
            warmup_steps=1500,
            warmup_ratio=1e-6,
            weight_decay=0.01,
            clip_norm=None,
        ),
        checkpoint=CheckpointConfig(every=2000),
        batch_size=16,
        steps=160_000,
        log_every=50,
        eval_every=16_000,
        ema_decay=None,
        init=recipe.start_from,
    )
