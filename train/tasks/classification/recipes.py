"""The recipes that the papers' classifiers were trained with, one row a published configuration.

Read in the configurations and the training script of the official project, which used timm 0.5.0.
What they have in common is in `imagenet_config`; what is odd about them is told there too, since it
is kept: docs/training.md has the list.
"""

import dataclasses

from natjax.train.config.settings import CheckpointConfig, ModelConfig, OptimizerConfig
from natjax.train.tasks.classification.config import (
    AugmentConfig,
    ClassificationConfig,
    EraseConfig,
    ImagesConfig,
    MixConfig,
)

_GPUS = 8
_WEIGHTS = "https://shi-labs.com/projects/dinat/checkpoints/imagenet22k/"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """One published configuration.

    Attributes:
      model: Name of the model.
      top1: Published accuracy on ImageNet's validation images, in percent.
      drop_path: Chance to skip the last block, which belongs to the variant.
      warmup_epochs: Of the 300 epochs; None for fine-tuning, which has no warm-up.
      ema: Whether the weights are averaged.
      weight_decay: Decoupled decay.
      image_size: Side of the images in pixels.
      pretrained: File of the 22k weights that fine-tuning starts from.
    """

    model: str
    top1: float
    drop_path: float
    warmup_epochs: float | None = 20.0
    ema: bool = False
    weight_decay: float = 0.05
    image_size: int = 224
    pretrained: str | None = None


def _large(model: str, top1: float, weight_decay: float, image_size: int = 224) -> Recipe:
    family = "dinat_s_large" if "_s_" in model else "dinat_large"
    return Recipe(
        model=model,
        top1=top1,
        drop_path=0.35,
        warmup_epochs=None,
        weight_decay=weight_decay,
        image_size=image_size,
        pretrained=f"{_WEIGHTS}{family}_in22k_224.pth",
    )


def _isotropic_base(model: str, top1: float) -> Recipe:
    return Recipe(model=model, top1=top1, drop_path=0.4, warmup_epochs=50.0, ema=True)


RECIPES = (
    Recipe(model="nat_mini", top1=81.8, drop_path=0.2),
    Recipe(model="nat_tiny", top1=83.2, drop_path=0.2),
    Recipe(model="nat_small", top1=83.7, drop_path=0.3),
    Recipe(model="nat_base", top1=84.3, drop_path=0.5),
    Recipe(model="dinat_mini", top1=81.8, drop_path=0.2),
    Recipe(model="dinat_tiny", top1=82.7, drop_path=0.2),
    Recipe(model="dinat_small", top1=83.8, drop_path=0.3),
    Recipe(model="dinat_base", top1=84.4, drop_path=0.5),
    _large("dinat_large", 86.6, 1e-4),
    _large("dinat_large_384", 87.4, 1e-10, 384),
    Recipe(model="dinat_s_tiny", top1=81.8, drop_path=0.2),
    Recipe(model="dinat_s_small", top1=83.5, drop_path=0.3),
    Recipe(model="dinat_s_base", top1=83.8, drop_path=0.5),
    _large("dinat_s_large", 86.5, 1e-4),
    _large("dinat_s_large_384", 87.4, 1e-5, 384),
    Recipe(model="nat_isotropic_small", top1=80.0, drop_path=0.1),
    Recipe(model="dinat_isotropic_small", top1=80.8, drop_path=0.1),
    Recipe(model="vitrpb_small", top1=81.2, drop_path=0.1),
    _isotropic_base("nat_isotropic_base", 81.6),
    _isotropic_base("dinat_isotropic_base", 82.1),
    _isotropic_base("vitrpb_base", 82.5),
)

# Published weights whose training is not.
NO_RECIPE = {
    "dinat_large_21k": "how the ImageNet-22K weights were trained is not published",
    "dinat_large_21k_11x11": "its weights are those of dinat_large_21k, with position biases"
    " resized from 13x13 to 21x21",
    "dinat_s_large_21k": "how the ImageNet-22K weights were trained is not published",
    "dinat_large_384_11x11": "there is no published configuration of it; dinat_large_384_imagenet"
    " with --model.name dinat_large_384_11x11 is the nearest",
}


def preset_name(recipe: Recipe) -> str:
    """Return the name of a recipe's preset."""
    return f"{recipe.model}_imagenet"


def imagenet_preset(model: str) -> ClassificationConfig:
    """Return the published recipe of a model."""
    return imagenet_config(next(recipe for recipe in RECIPES if recipe.model == model))


def imagenet_augmentation(*, mixes: bool) -> AugmentConfig:
    """Return the augmentation of every published configuration.

    Args:
      mixes: Whether with Mixup and CutMix, which fine-tuning leaves out.
    """
    return AugmentConfig(
        crop="resized",
        hflip=0.5,
        rand_augment="rand-m9-mstd0.5-inc1",
        color_jitter=0.4,  # set but unused: RandAugment is on
        mix=MixConfig(mixup_alpha=0.8, cutmix_alpha=1.0) if mixes else MixConfig(),
        erase=EraseConfig(prob=0.25),
    )


def imagenet_config(recipe: Recipe) -> ClassificationConfig:
    """Return a recipe as a run.

    Args:
      recipe: A row of `RECIPES`.
    """
    tunes = recipe.pretrained is not None
    per_gpu, every = (64, 2500) if tunes else (128, 1250)  # about an epoch
    return ClassificationConfig(
        model=ModelConfig(
            name=recipe.model,
            drop_path=recipe.drop_path,
            dtype="float32" if tunes else "bfloat16",  # with and without mixed precision
        ),
        data=ImagesConfig(
            name="imagenet2012",
            image_size=recipe.image_size,
            crop_pct=1.0 if recipe.image_size == 384 else 0.875,
            threads=4,
            workers=8,
        ),
        augment=imagenet_augmentation(mixes=not tunes),
        optimizer=_tuning(recipe) if tunes else _training(recipe),
        checkpoint=CheckpointConfig(every=every),
        batch_size=_GPUS * per_gpu,
        epochs=30.0 if tunes else 310.0,
        log_every=50,
        eval_every=every,
        label_smoothing=0.1,
        ema_decay=0.9998 if recipe.ema else None,
        ema_warmup=False,
        seed=42,
    )


def _training(recipe: Recipe) -> OptimizerConfig:
    return OptimizerConfig(
        learning_rate=1e-3,
        final_learning_rate=5e-6,
        warmup_learning_rate=1e-6,
        warmup_epochs=recipe.warmup_epochs,
        decay_from_start=True,
        cooldown_epochs=10.0,
        weight_decay=recipe.weight_decay,
        decay_bias_tables=True,
    )


def _tuning(recipe: Recipe) -> OptimizerConfig:
    return OptimizerConfig(
        learning_rate=5e-5,
        schedule="constant",
        warmup_steps=0,
        weight_decay=recipe.weight_decay,
        decay_bias_tables=True,
    )


def describe(recipe: Recipe) -> str:
    """Return the text of a recipe's preset; the first line stands for it in lists.

    Args:
      recipe: A row of `RECIPES`.
    """
    command = f"natjax train {preset_name(recipe)} --data.dir FOLDER"
    side = f", {recipe.image_size} pixels" if recipe.image_size != 224 else ""
    if recipe.pretrained is None:
        what, after = "ImageNet, 310 epochs", ""
        cost = f"batches of {_GPUS} x 128"
    else:
        what, after = f"ImageNet, 30 epochs from 22k weights{side}", f" --init {recipe.pretrained}"
        cost = f"batches of {_GPUS} x 64"
    return (
        f"{what}: {recipe.top1} % top-1 published.\n\n"
        f"Command: ``{command}{after}``, on {_GPUS} devices with ``--mesh.data {_GPUS}``.\n"
        f"Cost: not measured here; the paper's setting is {_GPUS} GPUs, {cost}.\n"
        f"Accuracy: {recipe.top1} % (published, not measured here)."
    )
