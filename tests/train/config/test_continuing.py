"""Which settings may change when a run is continued."""

import dataclasses
from pathlib import Path

import pytest

from natjax.train.config.continuing import FIXED, compare, find_rule
from natjax.train.config.serialization import override, to_json
from natjax.train.config.settings import RunConfig
from natjax.train.tasks.registry import installed_tasks


def settings_of(kind, prefix=""):
    """Full names of all settings of a configuration."""
    for field in dataclasses.fields(kind):
        name = f"{prefix}{field.name}"
        if dataclasses.is_dataclass(field.type):
            yield from settings_of(field.type, f"{name}.")
        else:
            yield name


@pytest.mark.parametrize("task", installed_tasks())
def test_every_setting_is_classified(task):
    """A new setting fails here until the tables say what becomes of it."""
    config = installed_tasks()[task].config
    names = list(settings_of(config))
    assert "optimizer.learning_rate" in names
    assert [name for name in names if find_rule(name, config.CONTINUING) is None] == []


@pytest.mark.parametrize("task", installed_tasks())
def test_every_entry_is_of_a_setting(task):
    config = installed_tasks()[task].config
    names = set(settings_of(config))
    sections = {name.rpartition(".")[0] for name in names}
    sections |= {name.rpartition(".")[0] for name in sections}
    assert set(config.CONTINUING) <= names | sections


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 3},
        {"model": {"name": "nat_mini"}},
        {"model": {"dtype": "bfloat16"}},
        {"data": {"name": "emoji"}},
        {"data": {"image_size": 48}},
        {"augment": {"mix": {"prob": 0.5}}},
        {"optimizer": {"learning_rate": 0.5}},
        {"label_smoothing": 0.3},
        {"batch_size": 64},
        {"ema_decay": 0.5},
        {"init": "x.pth"},
    ],
)
def test_what_changes_the_mathematics_is_refused(config, change):
    new = override(config, change)
    found = compare(to_json(config), to_json(new), config.CONTINUING)
    assert len(found.refused) == 1
    assert found.told == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"accumulate": 2}, "accumulate: 1 -> 2 (equal up to rounding, and to what is drawn"),
        ({"model": {"remat": True}}, "model.remat: False -> True (equal up to rounding)"),
        ({"mesh": {"data": 2}}, "mesh.data: None -> 2 (equal up to rounding)"),
        ({"log_every": 8}, "log_every: 4 -> 8"),
        ({"eval_every": 8}, "eval_every: 16 -> 8"),
        ({"checkpoint": {"every": 4}}, "checkpoint.every: 8 -> 4"),
        ({"epochs": 30.0}, "epochs: 15.0 -> 30.0 (from here on the learning rate is that of"),
        ({"steps": 32}, "steps: 24 -> 32 (from here on the learning rate is that of"),
        ({"data": {"workers": 3}}, "data.workers: 0 -> 3"),
        ({"tensorboard": True}, "tensorboard: False -> True"),
    ],
)
def test_what_does_not_is_accepted_and_told(config, change, told):
    new = override(config, change)
    found = compare(to_json(config), to_json(new), config.CONTINUING)
    assert found.refused == []
    assert len(found.told) == 1
    assert found.told[0].startswith(told)


def test_where_a_process_is_goes_without_saying(config):
    new = dataclasses.replace(
        override(config, {"distributed": {"process": 1, "processes": 2}}), run=Path("elsewhere")
    )
    found = compare(to_json(config), to_json(new), config.CONTINUING)
    assert (found.refused, found.told) == ([], [])


def test_what_no_table_knows_is_fixed():
    found = compare({"noise": 1}, {"noise": 2}, RunConfig.CONTINUING)
    assert found.refused == ["noise: 1 -> 2"]
    assert find_rule("model.color", {"model": FIXED}) is FIXED
