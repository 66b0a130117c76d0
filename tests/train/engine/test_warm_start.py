"""Weights of runs as files, and runs that start from files."""

import contextlib
import functools
import io
import shutil

import draw
import jax
import numpy as np
import pico
import pytest
from runs import final_state

import natjax
from natjax.cli import main
from natjax.train.checkpoint.run_folder import RunFolder
from natjax.train.config.serialization import override
from natjax.train.engine.trainer import build_trainer
from natjax.train.engine.warm_start import read_initial, start_from
from natjax.train.tasks.classification.task import Classification
from natjax.weights import WeightsError
from natjax.weights.load import named_params

SETTINGS = {"steps": 8, "eval_every": 8}


def train(run, **settings) -> int:
    return main(["train", "digits", *pico.flags(run, **settings)])


def model(**options):
    build = functools.partial(natjax.create_model, pico.NAME, in_channels=1, **options)
    return draw.filled(lambda rngs: build(rngs=rngs))


def values(model):
    return {name: np.asarray(param.get_value()) for name, param in named_params(model).items()}


@pytest.fixture(scope="module")
def started(tmp_path_factory, data_dir):
    """A run that started from a file which is gone, and what it printed."""
    folder, printed = tmp_path_factory.mktemp("runs"), io.StringIO()
    natjax.save_weights(model(), folder / "x.safetensors")
    settings = SETTINGS | {"init": folder / "x.safetensors", "data__prepared_dir": data_dir}
    with contextlib.redirect_stdout(printed):
        assert train(folder / "finished", **settings) == 0
    (folder / "x.safetensors").unlink()
    return folder / "finished", printed.getvalue()


@pytest.fixture
def finished(started):
    return started[0]


@pytest.mark.parametrize("name", ["x.safetensors", "x.pth"])
@pytest.mark.parametrize("naming", [None, "natjax", "official", "hf"])
@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_export(name, naming, weights, finished, tmp_path, capsys):
    words = ["export", str(finished), str(tmp_path / name), *["--raw"] * (weights == "raw")]
    assert main(words + (["--to", naming] if naming else [])) == 0
    assert f"{weights} weights of step 8" in capsys.readouterr().out
    loaded = model()
    report = natjax.load_weights(loaded, tmp_path / name)
    default = "official" if name == "x.pth" else "natjax"
    assert report.naming == (naming or default)
    expected = final_state(finished)[{"ema": "ema", "raw": "params"}[weights]]
    for key, array in values(loaded).items():
        np.testing.assert_array_equal(array, expected[key])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("nowhere x.pth", "nowhere is no run folder"),
        ("{run} x.zip", "must end in one of"),
        ("{run} x.pth --step 3", "no checkpoint of step 3"),
    ],
)
def test_wrong_export(words, message, finished, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["export", *words.format(run=finished).split()]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def trainer(config, init, **changes):
    return build_trainer(Classification(override(config, {"init": str(init), **changes})))


def test_a_run_starts_from_weights(config, tmp_path):
    """Parameters and average are those of the file, sharded, and share no memory."""
    source = model()
    natjax.save_weights(source, tmp_path / "x.pth")
    parts = trainer(config, tmp_path / "x.pth", mesh={"data": 2, "fsdp": 2})
    initial = read_initial(parts)
    drawn = parts.compiled.init()
    places = {name: leaf.sharding for name, leaf in drawn.params.items()}
    state = start_from(drawn, initial)
    for name, array in values(source).items():
        np.testing.assert_array_equal(state.params[name], array)
        np.testing.assert_array_equal(state.ema[name], array)
        assert state.params[name].sharding == places[name]
    batch = {
        "image": np.zeros((16, 32, 32, 1), np.uint8),
        "label": np.zeros(16, np.int32),
    }
    after, scalars = parts.compiled.train(state, jax.device_put(batch, parts.compiled.batch))
    assert int(after.step) == 1
    assert np.isfinite(scalars["loss"])


def test_another_number_of_classes(config, tmp_path):
    natjax.save_weights(model(num_classes=3), tmp_path / "x.safetensors")
    parts = trainer(config, tmp_path / "x.safetensors")
    initial = read_initial(parts)
    assert "left out with the classifier: head.bias, head.kernel" in initial.report
    state = start_from(parts.compiled.init(), initial)
    drawn = parts.compiled.init()
    for name, array in values(model(num_classes=3)).items():
        is_head = name.startswith("head.")
        expected = drawn.params[name] if is_head else array
        np.testing.assert_array_equal(state.params[name], expected)


def test_position_biases_of_another_size_are_resized(config, tmp_path):
    natjax.save_weights(model(kernel_size=5), tmp_path / "x.safetensors")
    initial = read_initial(trainer(config, tmp_path / "x.safetensors"))
    assert "resized: levels.*.blocks.*.attn.rpb" in initial.report


def test_weights_of_another_model(config, tmp_path):
    other = draw.filled(lambda rngs: natjax.create_model("nat_micro", rngs=rngs))
    natjax.save_weights(other, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match="does not fit the model"):
        read_initial(trainer(config, tmp_path / "x.safetensors"))


def test_init_is_recorded_and_not_applied_again(started, tmp_path, data_dir, capsys):
    run, printed = started
    weights = run.parent / "x.safetensors"
    assert f"Starting from {weights}: 23 arrays with natjax names" in printed
    assert RunFolder(run).read_config()["init"] == str(weights)
    copy = shutil.copytree(run, tmp_path / "copy")
    assert train(copy, **SETTINGS, init=weights, data__prepared_dir=data_dir) == 0
    out = capsys.readouterr().out
    assert "Resuming" in out
    assert "Starting from" not in out
    assert train(copy, **SETTINGS, data__prepared_dir=data_dir) == 2
    assert "another configuration (init: " in capsys.readouterr().err


def test_a_wrong_init_leaves_no_run(tmp_path, capsys):
    assert train(tmp_path / "run", init=tmp_path / "nowhere.pth") == 2
    assert "there is no file" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
