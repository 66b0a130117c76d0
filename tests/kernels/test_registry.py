"""Choosing an implementation."""

import logging
import types

import jax.numpy as jnp
import numpy as np
import pytest

import natjax
from natjax.kernels import registry
from natjax.kernels.registry import Implementation


def decline(*args, **kwargs):
    raise NotImplementedError("needs a GPU; pass implementation='xla'")


@pytest.fixture
def fakes(monkeypatch):
    """Two implementations: the preferred one declines."""
    modules = {
        "picky": types.SimpleNamespace(qk=decline),
        "easy": types.SimpleNamespace(qk=lambda x: x + 1),
    }
    known = {"picky": Implementation("picky"), "easy": Implementation("easy", aliases=("simple",))}
    monkeypatch.setattr(registry, "available", lambda: known)
    monkeypatch.setattr(registry.importlib, "import_module", lambda n: modules[n.split(".")[-1]])
    return modules


def test_none_falls_through_to_one_that_accepts(fakes, caplog):
    with caplog.at_level(logging.DEBUG, "natjax.kernels.registry"):
        assert registry.call("qk", None, 1) == 2
    assert "qk: not 'picky': needs a GPU" in caplog.text


def test_a_name_never_falls_back(fakes):
    assert registry.call("qk", "easy", 1) == 2
    with pytest.raises(NotImplementedError, match="pass implementation='xla'"):
        registry.call("qk", "picky", 1)


def test_wrong_calls_are_not_swallowed(fakes):
    def complain(x):
        raise ValueError("kernel_size")

    fakes["picky"].qk = complain
    with pytest.raises(ValueError, match="kernel_size"):
        registry.call("qk", None, 1)


def test_all_declining_tells_every_reason(fakes):
    fakes["easy"].qk = decline
    with pytest.raises(ExceptionGroup) as info:
        registry.call("qk", None, 1)
    assert len(info.value.exceptions) == 2


def test_what_is_for_another_platform_is_not_imported(fakes, monkeypatch):
    """Its import would make every first call on a CPU wait."""
    known = registry.available() | {"picky": Implementation("picky", platform="no such platform")}
    monkeypatch.setattr(registry, "available", lambda: known)
    monkeypatch.delenv("NATJAX_INTERPRET", raising=False)
    del fakes["picky"].qk  # importing and asking it would be an AttributeError
    assert registry.call("qk", None, 1) == 2
    monkeypatch.setenv("NATJAX_INTERPRET", "1")
    with pytest.raises(AttributeError):
        registry.call("qk", None, 1)


def test_an_implementation_goes_with_its_module(monkeypatch):
    found = registry.importlib.util.find_spec
    every = registry.names()
    registry.available.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(
            registry.importlib.util,
            "find_spec",
            lambda n: None if n.endswith(".xla") else found(n),
        )
        assert registry.names() == tuple(n for n in every if n != "xla")
        with pytest.raises(ValueError, match="one of"):
            registry.call("qk", "xla")
    registry.available.cache_clear()
    assert registry.names() == tuple(x.name for x in registry.IMPLEMENTATIONS)


def test_an_alias_is_the_implementation(interpreted):
    """A name that users may have written goes on to work."""
    assert registry.canonical("triton") == registry.canonical("pallas_triton") == "pallas_triton"
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 9, 1, 8)), jnp.float32)
    by_name, by_alias = (
        natjax.na1d(x, x, x, 3, implementation=name) for name in ("pallas_triton", "triton")
    )
    np.testing.assert_array_equal(by_name, by_alias)
    told = natjax.explain(x, x, x, 3, implementation="triton")
    assert told.chosen == "pallas_triton"


def test_aliases_and_names_are_distinct():
    names = [y for x in registry.IMPLEMENTATIONS for y in (x.name, *x.aliases)]
    assert len(set(names)) == len(names)
