"""Where the settings of a run come from: the preset, then a file, then flags; presets of files."""

import json
import re

import jax
import pico
import pytest

from natjax.cli import main
from natjax.train.cli.train import default_run, parse_train
from natjax.train.errors import UserError
from natjax.train.tasks.classification.task import Classification
from natjax.train.tasks.registry import find_preset, settings_of

TOML = """
batch-size = 32
seed = 5
ema_decay = "none"

[model]
name = "nat_pico"

[optimizer]
learning_rate = 1

[augment]
scale = [0.5, 1.0]
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(TOML)
    return path


def test_a_flag_counts_more_than_the_file_and_that_more_than_the_preset(file):
    _, config = parse_train("digits", ["--seed", "6"], file)
    preset = find_preset("digits")[1].make()
    assert (config.batch_size, config.seed, config.ema_decay) == (32, 6, None)
    assert config.model.name == "nat_pico"
    assert config.model.drop_path == preset.model.drop_path
    assert (config.optimizer.learning_rate, config.augment.scale) == (1.0, (0.5, 1.0))
    assert config.optimizer.warmup_steps == preset.optimizer.warmup_steps
    assert parse_train("digits", ["--config", str(file), "--seed", "6"])[1] == config


def test_the_configuration_of_a_run_can_be_given_again(tmp_path):
    task, config = parse_train("emoji", ["--run", str(tmp_path), "--steps", "7"])
    path = tmp_path / "config.json"
    path.write_text(json.dumps(settings_of(task, config)))
    assert parse_train("digits", [], path) == (task, config)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batch_siz = 3", "unknown setting batch_siz; did you mean 'batch_size'"),
        ("[model]\ncolor = 1", "unknown setting model.color"),
        ("model = 3", "model must be a table of settings"),
        ("seed = true", "seed must be a whole number, got True"),
        ('epochs = "many"', "epochs must be a number, got 'many'"),
        ("tensorboard = 1", "tensorboard must be true or false, got 1"),
        ('on_nan = "ignore"', "on_nan must be one of those that --help lists, got 'ignore'"),
        ("[augment]\nscale = [1]", "augment.scale must have 2 values, got 1"),
        ("batch_size = 0", "batch_size must be positive, got 0"),
        ('task = "denoise"', "is for the task 'denoise', the preset for 'classification'"),
        ("batch_size", "cannot be read"),
    ],
)
def test_wrong_files(tmp_path, text, message):
    (tmp_path / "x.toml").write_text(text)
    with pytest.raises(UserError) as error:
        parse_train("digits", [], tmp_path / "x.toml")
    assert message in str(error.value)


@pytest.mark.parametrize(("name", "message"), [("a.toml", "No such file"), ("a.yaml", ".toml or")])
def test_files_that_cannot_be_read(tmp_path, name, message):
    with pytest.raises(UserError, match=message):
        parse_train("digits", [], tmp_path / name)


def test_window_and_dilations_are_settings(config):
    words = ["--model.name", pico.NAME, "--model.kernel-size", "5", "--model.dilations", "2"]
    task = Classification(parse_train("digits", words)[1])
    (rpb,) = (x for name, x in jax.eval_shape(task.init)[0].items() if name.endswith("rpb"))
    assert rpb.shape == (2, 9, 9)
    assert task.model_builder()().config.dilations == ((2,),)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model.dilations", "1,2"], r"model nat_pico: .*dilations"),
        (
            ["--model.name", "nat_isotropic_small", "--model.dilations", "1/1"],
            "must have no levels",
        ),
    ],
)
def test_dilations_that_do_not_fit(words, message):
    _, config = parse_train("digits", ["--model.name", pico.NAME, *words])
    with pytest.raises(UserError, match=message):
        Classification(config).init()


def test_the_run_folder_is_named_after_the_preset():
    assert [default_run(x) for x in ("digits", "a/b.py", "b.py:c")] == ["digits", "b", "b-c"]


OWN = """
from natjax.train.config.settings import RunConfig
from natjax.train.tasks.definition import TaskDefinition, preset_of

def one():
    "One."
    return RunConfig(seed=1)

def two():
    return RunConfig(seed=2)

TASK = TaskDefinition(
    name="own", config=RunConfig, presets={PRESETS}, build=lambda config: None
)
"""


@pytest.mark.parametrize(
    ("presets", "name", "seed"),
    [
        ('{"x": preset_of(one)}', "", 1),
        ('{"x": preset_of(one), "own": preset_of(two)}', "", 2),
        ('{"x": preset_of(one), "y": preset_of(two)}', ":y", 2),
    ],
)
def test_presets_of_a_file(tmp_path, presets, name, seed):
    path = tmp_path / "own.py"
    path.write_text(OWN.replace("{PRESETS}", presets))
    assert parse_train(f"{path}{name}", [])[1].seed == seed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "there is no file"),
        ("x = 1", "must define TASK"),
        (
            OWN.replace("{PRESETS}", '{"x": preset_of(one), "y": preset_of(two)}'),
            r"has no preset 'x'; its presets are .*own.py:x, .*own.py:y",
        ),
    ],
)
def test_files_without_a_task(tmp_path, text, message, capsys):
    path = tmp_path / "own.py"
    if text is not None:
        path.write_text(text)
    assert main(["train", str(path)]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_broken_file_shows_where_it_is_broken(tmp_path):
    (tmp_path / "own.py").write_text("1 / 0")
    with pytest.raises(ZeroDivisionError):
        main(["train", str(tmp_path / "own.py")])
