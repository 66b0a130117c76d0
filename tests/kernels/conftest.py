"""Every implementation runs the same suite, and so does a backend that the tests bring along."""

import jax
import pytest
from calls import KERNELS, NAMES

from natjax.kernels import registry


def _param(name):
    """Triton's interpreter takes a millisecond for what takes a GPU nothing: mostly slow tests."""
    return pytest.param(name, marks=[pytest.mark.slow] if name == "jax_triton" else [])


@pytest.fixture(params=[*map(_param, NAMES), "toy"])
def implementation(request, interpreted):
    return request.param


@pytest.fixture(params=[name for name in NAMES if name not in KERNELS])
def exact_implementation(request):
    """Those that take float64 and give derivatives of any order, in both modes."""
    return request.param


@pytest.fixture
def interpreted(monkeypatch):
    """Pallas kernels run interpreted, but for where there is what they are made for."""
    if jax.default_backend() == "cpu":
        monkeypatch.setenv("NATJAX_INTERPRET", "1")
    if "mosaic_tpu" in registry.names():
        # Tiles that a kernel works on side by side: each is a program to compile for the CPU.
        monkeypatch.setattr("natjax.kernels.backends.mosaic_tpu.memory.TILES", 2)


@pytest.fixture
def strict(monkeypatch, interpreted):
    """Memory that is nan where nobody wrote, and copies that arrive only when they are awaited."""
    from jax.experimental.pallas import tpu as pltpu

    params = pltpu.InterpretParams(
        uninitialized_memory="nan", detect_races=True, dma_execution_mode="on_wait"
    )
    monkeypatch.setattr("natjax.kernels.backends.mosaic_tpu.run.INTERPRETER", params)
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.fixture
def few_logits(monkeypatch, interpreted):
    """Every call goes to the kernels for large windows, whose tiles and chunks are small."""
    folder = "natjax.kernels.backends.mosaic_tpu"
    for module in ("ops", "support"):
        monkeypatch.setattr(f"{folder}.{module}.prefers_large", lambda spec, heads: True)
    monkeypatch.setattr(f"{folder}.large.walk._ROWS", 128)
    monkeypatch.setattr(f"{folder}.large.walk._COLUMNS", 256)
    _forget_plans()
    yield
    _forget_plans()


def _forget_plans():
    from natjax.kernels.backends.mosaic_tpu.large import choice, walk

    choice.walks_of.cache_clear()
    walk._best_axes.cache_clear()
    walk._sides_of_chunks.cache_clear()
    jax.clear_caches()


@pytest.fixture
def on_cpu_mesh(implementation):
    """Implementations for tests on a mesh of CPU devices."""
    if implementation == "jax_triton":
        pytest.skip("Triton's interpreter runs on one device")
    if implementation in KERNELS and jax.default_backend() != "cpu":
        pytest.skip("kernels that are not interpreted do not run on the CPU devices of a mesh")
    return implementation


@pytest.fixture(autouse=True)
def _toy(request, monkeypatch):
    """Tests of the toy backend know it, as they would one that natjax brings."""
    if "toy" in getattr(request.node, "callspec", request.node).__dict__.get("params", {}).values():
        known = {
            x.name: x
            for x in (*registry.IMPLEMENTATIONS, registry.Implementation("toy", package=""))
        }
        monkeypatch.setattr(registry, "available", lambda: known)
