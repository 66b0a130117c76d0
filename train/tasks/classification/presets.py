"""Presets of classification. Docstrings give the command, its cost, and the accuracy to expect.

The published ImageNet recipes are in `natjax.train.tasks.classification.recipes`. A preset is a
function without arguments; every value can be overridden on the command line, such as
``natjax train digits --epochs 5 --optimizer.learning-rate 5e-4``.
"""

from typing import TYPE_CHECKING

from natjax.train.config.settings import CheckpointConfig, ModelConfig, OptimizerConfig
from natjax.train.tasks.classification.config import (
    AugmentConfig,
    ClassificationConfig,
    EraseConfig,
    ImagesConfig,
    MixConfig,
)
from natjax.train.tasks.classification.recipes import (
    NO_RECIPE,
    RECIPES,
    Recipe,
    describe,
    imagenet_config,
    preset_name,
)
from natjax.train.tasks.definition import Preset, TaskDefinition, preset_of

if TYPE_CHECKING:
    from natjax.train.tasks.classification.task import Classification


def digits() -> ClassificationConfig:
    """Handwritten digits of scikit-learn, 1437 to train on and 360 to test, enlarged to 32x32.

    Command: ``natjax train digits``.
    Cost: 84 s on 2 CPU cores that had other work too, compilation included (measured).
    Accuracy: 99.7 % of the 360 (measured, averaged weights).
    """
    return ClassificationConfig(
        model=ModelConfig(name="nat_micro", drop_path=0.05, init="fan_in"),
        data=ImagesConfig(name="digits"),
        augment=AugmentConfig(crop="shift", shift=2),
        optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=60),
        checkpoint=CheckpointConfig(every=100),
        batch_size=64,
        epochs=15.0,
        log_every=10,
        eval_every=100,
        ema_decay=0.98,
    )


def fashion_mnist() -> ClassificationConfig:
    """Fashion-MNIST, 60000 photographs of clothing to train on and 10000 to test, padded to 32x32.

    Command: ``natjax train fashion_mnist --data.dir /usr/share/datasets/fashion-mnist``, with the
    files of Debian's package ``dataset-fashion-mnist``.
    Cost: 16 minutes on 2 CPU cores that had other work too (measured).
    Accuracy: 91.1 % (measured, averaged weights).
    """
    return ClassificationConfig(
        model=ModelConfig(name="nat_micro", init="fan_in"),
        data=ImagesConfig(name="fashion_mnist"),
        # Not mirrored: every shoe points left.
        augment=AugmentConfig(crop="shift", shift=1),
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=200, beta2=0.99),
        checkpoint=CheckpointConfig(every=500),
        batch_size=64,
        epochs=8.0,
        log_every=50,
        eval_every=1500,
        ema_decay=0.998,
    )


def fashion_mnist_full() -> ClassificationConfig:
    """Fashion-MNIST with every augmentation of the ImageNet recipes, sized for 32x32 gray.

    Command: ``natjax train fashion_mnist_full --data.dir /usr/share/datasets/fashion-mnist``, with
    the files of Debian's package ``dataset-fashion-mnist``.
    Cost: 24 minutes on 2 CPU cores that had other work too (measured).
    Accuracy: 86.9 % (measured, averaged weights).
    """
    return ClassificationConfig(
        model=ModelConfig(name="nat_micro", drop_path=0.05, init="fan_in"),
        data=ImagesConfig(name="fashion_mnist"),
        augment=_full_augmentation(smallest=0.5),
        optimizer=_full_optimizer(cooldown_epochs=0.5),
        checkpoint=CheckpointConfig(every=500),
        batch_size=64,
        epochs=8.0,  # as many as without augmentation
        log_every=50,
        eval_every=1500,
        ema_decay=0.998,
    )


def emoji() -> ClassificationConfig:
    """1906 colour drawings in 9 categories, with every augmentation of the ImageNet recipes.

    Command: ``natjax train emoji --data.dir package``, with the files of the npm package
    ``emoji-datasource-google`` (``npm pack emoji-datasource-google@16.0.0``, then unpack).
    Cost: 20 minutes on 2 CPU cores that had other work too (measured).
    Accuracy: 67.6 % of 377 held-out drawings (measured, averaged weights); by chance 11 %.
    """
    return ClassificationConfig(
        model=ModelConfig(name="nat_micro", drop_path=0.05, init="fan_in"),
        data=ImagesConfig(name="emoji"),
        augment=_full_augmentation(smallest=0.35),
        optimizer=_full_optimizer(cooldown_epochs=5.0),
        checkpoint=CheckpointConfig(every=500),
        batch_size=64,
        epochs=150.0,
        log_every=50,
        eval_every=500,
        ema_decay=0.995,
    )


def finetune() -> ClassificationConfig:
    """Photos of your own, a folder for each class, on a NAT-Tiny that knows ImageNet-1K.

    Command: ``natjax train finetune --data.dir photos``, with photos/train/CLASS/... and
    photos/val/CLASS/...; the weights are downloaded once. Another model: ``--model.name nat_mini``;
    weights from elsewhere: ``--init FILE``. With few photos, ``--model.frozen`` trains the
    classifier alone; ``--model.dtype float32`` is quicker on CPUs.
    Cost: as many photos as there are, 20 times over (not measured).
    Accuracy: depends on the photos (not measured).
    """
    return ClassificationConfig(
        model=ModelConfig(name="nat_tiny", drop_path=0.1, dtype="bfloat16", layer_decay=0.85),
        data=ImagesConfig(name="image_folder", image_size=224, crop_pct=0.875, workers=2),
        augment=AugmentConfig(
            crop="resized",
            scale=(0.35, 1.0),
            hflip=0.5,
            rand_augment="rand-m7-mstd0.5-inc1",
            erase=EraseConfig(prob=0.1),
        ),
        optimizer=OptimizerConfig(
            learning_rate=5e-4, warmup_epochs=1.0, final_learning_rate=1e-6, clip_norm=1.0
        ),
        batch_size=64,
        epochs=20.0,
        ema_decay=0.998,
        init="imagenet1k",
    )


def _full_optimizer(cooldown_epochs: float) -> OptimizerConfig:
    """The schedule of the ImageNet recipes, at a rate for small networks."""
    return OptimizerConfig(
        learning_rate=3e-3,
        warmup_learning_rate=1e-6,
        warmup_steps=200,
        decay_from_start=True,
        cooldown_epochs=cooldown_epochs,
        beta2=0.99,
    )


def _full_augmentation(smallest: float) -> AugmentConfig:
    """All of ImageNet's, milder where a small network on small images would see too little.

    Args:
      smallest: Smallest area of a crop; ImageNet's 0.08 leaves 9 x 9 pixels of 32 x 32.
    """
    return AugmentConfig(
        crop="resized",
        scale=(smallest, 1.0),
        hflip=0.5,
        rand_augment="rand-m5-mstd0.5-inc1",
        color_jitter=0.4,
        mix=MixConfig(mixup_alpha=0.8, cutmix_alpha=1.0, prob=0.5),
        erase=EraseConfig(prob=0.25),
    )


def _published(recipe: Recipe) -> Preset:
    return Preset(
        make=lambda: imagenet_config(recipe),
        description=describe(recipe),
        start_from=recipe.pretrained,
    )


PRESETS: dict[str, Preset] = {
    "digits": preset_of(digits),
    "fashion_mnist": preset_of(fashion_mnist),
    "fashion_mnist_full": preset_of(fashion_mnist_full),
    "emoji": preset_of(emoji),
    "finetune": preset_of(finetune),
} | {preset_name(recipe): _published(recipe) for recipe in RECIPES}


def _build(config: ClassificationConfig) -> "Classification":
    from natjax.train.tasks.classification.task import Classification

    return Classification(config)


TASK = TaskDefinition(
    name="classification",
    config=ClassificationConfig,
    presets=PRESETS,
    build=_build,
    no_preset=lambda name: NO_RECIPE.get(name.removesuffix("_imagenet")),
)
