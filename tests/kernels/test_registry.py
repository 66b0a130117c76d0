"""Choosing an implementation."""

import logging
import sys
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


@pytest.mark.parametrize("missing", ["triton", "jax.experimental.pallas.triton", None])
def test_an_alias_is_the_best_that_has_what_it_needs(missing, monkeypatch):
    """A name that users may have written goes on to work, whatever JAX and the user have."""
    monkeypatch.setattr(registry, "_is_there", lambda module: module != missing)
    expected = "pallas_triton" if missing == "triton" else "jax_triton"
    assert registry.canonical("triton") == expected
    assert registry.canonical("pallas_triton") == "pallas_triton"


def test_an_alias_is_the_implementation(interpreted):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 9, 1, 8)), jnp.float32)
    named = registry.canonical("triton")
    by_name, by_alias = (natjax.na1d(x, x, x, 3, implementation=name) for name in (named, "triton"))
    np.testing.assert_array_equal(by_name, by_alias)
    told = natjax.explain(x, x, x, 3, implementation="triton")
    assert told.chosen == named


def test_what_is_there_is_found_without_an_error():
    assert registry._is_there("jax.numpy")
    assert not registry._is_there("jax.no_such_module")
    assert not registry._is_there("no_such_package.no_such_module")


def test_kernels_that_jax_no_longer_has_are_declined(monkeypatch, interpreted):
    """JAX has deprecated what "pallas_triton" is made of: one day the import fails."""
    for name in [x for x in sys.modules if x.startswith("natjax.kernels.backends.pallas_triton")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "jax.experimental.pallas.triton", None)
    monkeypatch.delattr("jax.experimental.pallas.triton", raising=False)
    x = jnp.zeros((1, 9, 1, 8))
    with pytest.raises(NotImplementedError, match=r"cannot be imported here: .*triton.* use impl"):
        natjax.na1d(x, x, x, 3, implementation="pallas_triton")
    assert natjax.na1d(x, x, x, 3).shape == x.shape
    told = natjax.explain(x, x, x, 3)
    assert told.chosen != "pallas_triton"


def test_aliases_are_no_names():
    names = [x.name for x in registry.IMPLEMENTATIONS]
    assert len(set(names)) == len(names)
    assert not {y for x in registry.IMPLEMENTATIONS for y in x.aliases} & set(names)
