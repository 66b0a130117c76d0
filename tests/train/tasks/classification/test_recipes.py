"""The published recipes against the numbers of the official configurations, typed in here."""

import dataclasses

import pytest

import natjax
from natjax.backbones.variants import VARIANTS
from natjax.preprocessing import preprocessing
from natjax.train.cli.train import parse_train
from natjax.train.config.settings import ModelConfig
from natjax.train.engine.optimizer import schedule
from natjax.train.errors import UserError
from natjax.train.tasks.classification import presets
from natjax.train.tasks.classification.config import (
    AugmentConfig,
    EraseConfig,
    ImagesConfig,
    MixConfig,
)
from natjax.train.tasks.classification.recipes import RECIPES
from natjax.train.tasks.classification.task import Classification
from natjax.train.tasks.registry import find_preset

# Model: warm-up epochs, EMA, top-1.
TRAINED = {
    "dinat_base": (20, False, 84.4),
    "dinat_isotropic_base": (50, True, 82.1),
    "dinat_isotropic_small": (20, False, 80.8),
    "dinat_mini": (20, False, 81.8),
    "dinat_s_base": (20, False, 83.8),
    "dinat_s_small": (20, False, 83.5),
    "dinat_s_tiny": (20, False, 81.8),
    "dinat_small": (20, False, 83.8),
    "dinat_tiny": (20, False, 82.7),
    "nat_base": (20, False, 84.3),
    "nat_isotropic_base": (50, True, 81.6),
    "nat_isotropic_small": (20, False, 80.0),
    "nat_mini": (20, False, 81.8),
    "nat_small": (20, False, 83.7),
    "nat_tiny": (20, False, 83.2),
    "vitrpb_base": (50, True, 82.5),
    "vitrpb_small": (20, False, 81.2),
}
# Model: weight decay, side, crop_pct, top-1.
TUNED = {
    "dinat_large": (1e-4, 224, 0.875, 86.6),
    "dinat_large_384": (1e-10, 384, 1.0, 87.4),
    "dinat_s_large": (1e-4, 224, 0.875, 86.5),
    "dinat_s_large_384": (1e-5, 384, 1.0, 87.4),
}
IMAGENET = 1281167


def preset(model):
    return presets.PRESETS[f"{model}_imagenet"].make()


def rate(config, epoch):
    per_epoch = IMAGENET / config.batch_size
    total = round(config.epochs * per_epoch)
    return float(schedule(config.optimizer, total, per_epoch)(round(epoch * per_epoch)))


def test_every_published_configuration_has_a_preset():
    assert {recipe.model for recipe in RECIPES} == TRAINED.keys() | TUNED.keys()
    assert len(RECIPES) == 21


@pytest.mark.parametrize("model", sorted(TRAINED.keys() | TUNED.keys()))
def test_what_all_have_in_common(model):
    config = preset(model)
    expected = AugmentConfig(
        crop="resized",
        scale=(0.08, 1.0),
        ratio=(3 / 4, 4 / 3),
        interpolation="random",
        hflip=0.5,
        rand_augment="rand-m9-mstd0.5-inc1",
        color_jitter=0.4,
        erase=EraseConfig(
            prob=0.25, mode="pixel", count=1, area=(0.02, 1 / 3), aspect=(0.3, 1 / 0.3)
        ),
    )
    assert dataclasses.replace(config.augment, mix=MixConfig()) == expected
    optimizer = config.optimizer
    assert (optimizer.beta1, optimizer.beta2, optimizer.eps) == (0.9, 0.999, 1e-8)
    assert optimizer.clip_norm == 5.0
    assert optimizer.decay_bias_tables
    assert (config.label_smoothing, config.seed, config.accumulate) == (0.1, 42, 1)
    assert (config.data.name, config.data.eval_interpolation) == ("imagenet2012", "bicubic")
    assert config.model.init == "published"
    variant, how = VARIANTS[model], preprocessing(model)
    assert config.model.drop_path == variant.drop_path
    assert (config.data.image_size, config.data.crop_pct) == (how.size, how.crop_pct)
    text = presets.PRESETS[f"{model}_imagenet"].description
    assert f"{(TRAINED | TUNED)[model][-1]} % top-1 published" in text.splitlines()[0]


@pytest.mark.parametrize("model", TRAINED)
def test_recipes_of_300_epochs(model):
    warmup, ema, _ = TRAINED[model]
    config = preset(model)
    assert config.augment.mix == MixConfig(
        mixup_alpha=0.8, cutmix_alpha=1.0, prob=1.0, switch_prob=0.5
    )
    assert (config.batch_size, config.epochs, config.model.dtype) == (1024, 310.0, "bfloat16")
    assert config.optimizer.weight_decay == 0.05
    assert (config.ema_decay, config.ema_warmup) == (0.9998 if ema else None, False)
    assert rate(config, 0) == pytest.approx(1e-6)
    assert rate(config, warmup / 2) == pytest.approx((1e-6 + 1e-3) / 2, rel=1e-3)
    # Counted from 0, the cosine has begun to fall when the warm-up ends.
    assert rate(config, warmup - 1e-3) == pytest.approx(1e-3, rel=1e-3)
    assert rate(config, warmup) == pytest.approx({20: 0.989e-3, 50: 0.933e-3}[warmup], abs=5e-7)
    assert rate(config, 150) == pytest.approx((1e-3 + 5e-6) / 2, rel=1e-3)
    for epoch in (300, 305, 310):
        assert rate(config, epoch) == pytest.approx(5e-6, rel=1e-3)
    assert rate(config, 299) > 5.02e-6


@pytest.mark.parametrize("model", TUNED)
def test_recipes_of_fine_tuning(model):
    decay, side, crop_pct, _ = TUNED[model]
    config = preset(model)
    assert not config.augment.mix.enabled
    assert (config.batch_size, config.epochs, config.model.dtype) == (512, 30.0, "float32")
    assert config.optimizer.weight_decay == decay
    assert (config.data.image_size, config.data.crop_pct) == (side, crop_pct)
    assert config.ema_decay is None
    # "sched: linear" is no schedule that the script knew: the rate stays.
    assert [rate(config, epoch) for epoch in (0, 1, 15, 30)] == pytest.approx([5e-5] * 4)


@pytest.mark.parametrize("model", ["nat_mini", "dinat_s_tiny", "vitrpb_small", "dinat_large_384"])
def test_the_model_of_a_preset_can_be_built(model):
    from flax import nnx

    config = dataclasses.replace(preset(model), data=ImagesConfig(name="emoji"))
    built = nnx.eval_shape(Classification(config).model_builder())
    assert built.config.drop_path == natjax.model_config(model).drop_path
    assert built.dtype == {"dinat_large_384": "float32"}.get(model, "bfloat16")


def test_fine_tuning_needs_weights_to_start_from():
    with pytest.raises(UserError, match=r"ImageNet-22K: pass --init FILE or --init https://shi-"):
        parse_train("dinat_large_imagenet", [])
    _, config = parse_train("dinat_large_imagenet", ["--init", "a.pth"])
    assert config.init == "a.pth"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("dinat_large_21k_imagenet", "how the ImageNet-22K weights were trained is not published"),
        ("dinat_large_384_11x11_imagenet", "there is no published configuration of it"),
        ("nat_tny_imagenet", "did you mean 'nat_tiny_imagenet'"),
    ],
)
def test_what_has_no_preset_says_why(name, reason):
    with pytest.raises(UserError, match=reason):
        find_preset(name)


def test_help_lists_every_preset_on_one_line():
    for name, found in presets.PRESETS.items():
        assert len(found.summary) <= 100, name
    assert ModelConfig().name == "nat_micro"
