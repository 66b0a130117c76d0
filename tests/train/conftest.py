import dataclasses
from pathlib import Path

import pico
import pytest

from natjax.train import presets
from natjax.train.config import CheckpointConfig, DataConfig, ModelConfig, OptimizerConfig
from natjax.train.datasets import get_spec, open_dataset, open_split


@pytest.fixture(scope="module", autouse=True)
def _pico():
    """The small model is there for the tests of training alone."""
    pico.register()
    yield
    pico.unregister()


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory) -> Path:
    """A folder with the digits prepared."""
    folder = tmp_path_factory.mktemp("data")
    data = dataclasses.replace(presets.digits().data, prepared_dir=folder)
    open_dataset(get_spec(DataConfig(name="digits")), data)
    return folder


@pytest.fixture(autouse=True)
def natjax_data(data_dir, monkeypatch):
    monkeypatch.setenv("NATJAX_DATA", str(data_dir))


@pytest.fixture
def config():
    """A run of a few steps of a very small model on the digits."""
    return dataclasses.replace(
        presets.digits(),
        model=ModelConfig(name=pico.NAME, drop_path=0.1),
        optimizer=OptimizerConfig(warmup_steps=4),
        checkpoint=CheckpointConfig(every=8),
        steps=24,
        batch_size=16,
        log_every=4,
        eval_every=16,
    )


@pytest.fixture
def digits(config, data_dir):
    """The data set's spec, training records and test records."""
    spec = get_spec(DataConfig(name="digits"))
    builder = open_dataset(spec, config.data)
    return spec, open_split(builder, "train"), open_split(builder, "test")
