import dataclasses
from collections.abc import Iterator
from pathlib import Path

import jax
import pico
import pytest
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from natjax.train.config.settings import CheckpointConfig, ModelConfig, OptimizerConfig
from natjax.train.data.datasets import open_dataset, open_split
from natjax.train.engine import loop
from natjax.train.tasks.classification import presets
from natjax.train.tasks.classification.config import ImagesConfig
from natjax.train.tasks.classification.datasets.registry import get_spec

# Everything is kept, however small; None: the folder.
CACHE = {
    "jax_compilation_cache_dir": None,
    "jax_persistent_cache_min_compile_time_secs": 0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}


@pytest.fixture(scope="module", autouse=True)
def _pico():
    """The small model is there for the tests of training alone."""
    pico.register()
    yield
    pico.unregister()


@pytest.fixture(scope="package", autouse=True)
def compilation_cache(tmp_path_factory) -> Iterator[Path]:
    """Programs that one test has compiled serve the next, and its processes."""
    before = {name: getattr(jax.config, name) for name in CACHE}
    folder = tmp_path_factory.mktemp("compiled")
    for name, value in CACHE.items():
        jax.config.update(name, str(folder) if value is None else value)
    reset_cache()  # JAX decides once whether there is a cache
    yield folder
    for name, value in before.items():
        jax.config.update(name, value)
    reset_cache()


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory) -> Path:
    """A folder with the digits prepared."""
    folder = tmp_path_factory.mktemp("data")
    data = dataclasses.replace(presets.digits().data, prepared_dir=folder)
    open_dataset(get_spec(ImagesConfig(name="digits")), data)
    return folder


@pytest.fixture(autouse=True)
def natjax_data(data_dir, monkeypatch):
    monkeypatch.setenv("NATJAX_DATA", str(data_dir))


@pytest.fixture
def no_pictures(monkeypatch):
    """Leave out the pictures at the end of a run, which take longer to draw than to train for."""
    monkeypatch.setattr(loop, "write_pictures", lambda *_: {})


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
    spec = get_spec(ImagesConfig(name="digits"))
    builder = open_dataset(spec, config.data)
    return spec, open_split(builder, "train"), open_split(builder, "test")
