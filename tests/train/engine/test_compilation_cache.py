"""Compiled programs are kept between runs, wherever that is safe."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from natjax.train.cluster import processes
from natjax.train.engine.compilation_cache import use_compilation_cache

NAMES = ("jax_compilation_cache_dir", "jax_compilation_cache_max_size")
PROGRAM = """
import os, sys
import jax, jax.numpy as jnp
from natjax.train.engine.compilation_cache import use_compilation_cache

use_compilation_cache(True)
hits = []
jax.monitoring.register_event_listener(
    lambda event, **_: hits.append(event) if event.endswith("cache_hits") else None
)
x = jax.jit(lambda x: jnp.sin(x) @ x.T)(jnp.ones((8, 5)))
print(float(x.sum()), len(hits) > 0)
"""


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The user's cache, empty, of a JAX that has none."""
    before = {name: getattr(jax.config, name) for name in NAMES}
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    reset_cache()
    yield tmp_path / "natjax" / "compiled"
    for name, value in before.items():
        jax.config.update(name, value)
    reset_cache()


def kept(folder) -> set[str]:
    return {path.name for path in folder.glob("*/*-cache")}


def test_programs_are_kept(cache):
    use_compilation_cache(True)
    jax.block_until_ready(jax.jit(lambda x: x * 2 + 1)(jnp.arange(3.0)))
    assert any("lambda" in name for name in kept(cache))


@pytest.mark.parametrize("why", ["switched off", "another folder", "several processes"])
def test_programs_are_not_kept(why, cache, tmp_path, monkeypatch):
    mine = str(tmp_path / "mine") if why == "another folder" else None
    jax.config.update("jax_compilation_cache_dir", mine)
    if why == "several processes":
        monkeypatch.setattr(processes, "_count", 2)
    use_compilation_cache(why != "switched off")
    assert jax.config.jax_compilation_cache_dir == mine
    assert not cache.exists()


def test_a_cache_that_cannot_be_written_is_told_and_left_alone(cache, capsys):
    cache.parent.write_text("a file where the folder should be")
    use_compilation_cache(True)
    assert jax.config.jax_compilation_cache_dir is None
    assert "compiled programs are not kept" in capsys.readouterr().err


@pytest.mark.oldest
def test_processes_side_by_side_and_damaged_entries(cache, tmp_path):
    environment = os.environ | {
        "XDG_CACHE_HOME": str(tmp_path),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)

    def run(times):
        started = [
            subprocess.Popen(
                [sys.executable, "-W", "ignore", "-c", PROGRAM],
                env=environment,
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(times)
        ]
        out = [process.communicate(timeout=120)[0].split() for process in started]
        assert all(process.returncode == 0 for process in started)
        return out

    first, second = run(2)
    assert first[0] == second[0]
    assert run(1) == [[first[0], "True"]]
    for path in cache.glob("*/*-cache"):
        path.write_bytes(path.read_bytes()[:40])
    assert run(1) == [[first[0], "False"]]
