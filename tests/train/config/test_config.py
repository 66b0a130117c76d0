import dataclasses
import json
import re
from pathlib import Path

import pytest

from natjax.train.config.serialization import from_json, to_json
from natjax.train.config.settings import MeshConfig, ModelConfig, OptimizerConfig
from natjax.train.errors import UserError, did_you_mean
from natjax.train.tasks.classification import presets
from natjax.train.tasks.classification.config import (
    AugmentConfig,
    ClassificationConfig,
    EraseConfig,
    ImagesConfig,
    MixConfig,
)
from natjax.train.tasks.registry import find_preset


@pytest.mark.parametrize("name", presets.PRESETS)
def test_json_round_trip(name):
    config = dataclasses.replace(presets.PRESETS[name].make(), run=Path("x"), steps=None)
    values = json.loads(json.dumps(to_json(config)))
    assert from_json(ClassificationConfig, values) == config


@pytest.mark.parametrize("name", presets.PRESETS)
def test_a_preset_says_its_command_cost_and_accuracy(name):
    text = presets.PRESETS[name].description
    for word in (f"natjax train {name}", "Cost:", "Accuracy:", "measured"):
        assert word in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch_size must be positive, got 0"),
        ({"epochs": -1.0}, "epochs must be positive, got -1.0"),
        ({"steps": 0}, "steps must be positive, got 0"),
        ({"seed": -1}, "seed must be in [0, 2**32), got -1"),
        ({"ema_decay": 1.0}, "ema_decay must be in [0, 1), got 1.0"),
        ({"label_smoothing": 1.5}, "label_smoothing must be in [0, 1), got 1.5"),
        ({"log_every": 7}, "checkpoint.every must be a multiple of log_every=7, got 8"),
        ({"eval_every": 12}, "eval_every must be a multiple of checkpoint.every=8, got 12"),
        (
            {"accumulate": 3, "mesh": MeshConfig(data=2)},
            "batch_size must be a multiple of mesh.data * mesh.fsdp * accumulate=6, got 16",
        ),
        ({"augment": AugmentConfig(hflip=2.0)}, "augment.hflip must be in [0, 1], got 2.0"),
        ({"augment": AugmentConfig(shift=-1)}, "augment.shift must be at least 0, got -1"),
        (
            {"augment": AugmentConfig(scale=(0.5, 1.5))},
            "augment.scale must be two numbers, 0 < low <= high <= 1, got (0.5, 1.5)",
        ),
        (
            {"augment": AugmentConfig(ratio=(2.0, 1.0))},
            "augment.ratio must be two numbers, 0 < low <= high, got (2.0, 1.0)",
        ),
        (
            {"augment": AugmentConfig(erase=EraseConfig(count=0))},
            "augment.erase.count must be at least 1, got 0",
        ),
        (
            {"augment": AugmentConfig(mix=MixConfig(mixup_alpha=-1.0))},
            "augment.mix.mixup_alpha must be at least 0, got -1.0",
        ),
        ({"data": ImagesConfig(name="digits", crop_pct=0.0)}, "data.crop_pct must be in (0, 1]"),
        ({"model": ModelConfig(kernel_size=0)}, "model.kernel_size must be at least 1, got 0"),
        (
            {"model": ModelConfig(dilations="1,x/2")},
            "model.dilations must be like 1,8,1/1,4,1,4, numbers from 1, got '1,x/2'",
        ),
        (
            {"optimizer": OptimizerConfig(schedule="steps")},
            "optimizer.step_epochs must be given for --optimizer.schedule steps, got ()",
        ),
        (
            {"optimizer": OptimizerConfig(step_epochs=(3.0, 2.0))},
            "optimizer.step_epochs must be rising and positive, got (3.0, 2.0)",
        ),
        ({"mesh": MeshConfig(data=0)}, "mesh.data must be at least 1, got 0"),
        (
            {"mesh": MeshConfig(data=3)},
            "batch_size must be a multiple of mesh.data * mesh.fsdp=3, got 16",
        ),
    ],
)
def test_rules(config, change, message):
    with pytest.raises(UserError, match=re.escape(message)):
        dataclasses.replace(config, **change)


def test_unknown_setting_in_json(config):
    with pytest.raises(UserError, match=r"unknown setting model\.color"):
        from_json(ClassificationConfig, to_json(config) | {"model": {"color": 1}})


def test_unknown_preset_suggests_the_nearest():
    with pytest.raises(UserError, match="'digit'; did you mean 'digits'"):
        find_preset("digit")


def test_no_suggestion_where_nothing_is_near():
    assert did_you_mean("qqqqqq", ["digits"]) == ""


def test_defaults_are_a_valid_run():
    assert ClassificationConfig(data=presets.digits().data).batch_size == 64
