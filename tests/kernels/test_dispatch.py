"""Choosing an implementation."""

import types

import pytest

from natjax.kernels import dispatch


def decline(*args, **kwargs):
    raise NotImplementedError("needs a GPU; pass implementation='xla'")


@pytest.fixture
def fakes(monkeypatch):
    """Two implementations: the preferred one declines."""
    modules = {
        "picky": types.SimpleNamespace(qk=decline),
        "easy": types.SimpleNamespace(qk=lambda x: x + 1),
    }
    monkeypatch.setattr(dispatch, "available", lambda: tuple(modules))
    monkeypatch.setattr(dispatch.importlib, "import_module", lambda n: modules[n.split(".")[-1]])
    return modules


def test_none_falls_through_to_one_that_accepts(fakes):
    assert dispatch.call("qk", None, 1) == 2


def test_a_name_never_falls_back(fakes):
    assert dispatch.call("qk", "easy", 1) == 2
    with pytest.raises(NotImplementedError, match="pass implementation='xla'"):
        dispatch.call("qk", "picky", 1)


def test_wrong_calls_are_not_swallowed(fakes):
    def complain(x):
        raise ValueError("kernel_size")

    fakes["picky"].qk = complain
    with pytest.raises(ValueError, match="kernel_size"):
        dispatch.call("qk", None, 1)


def test_all_declining_tells_every_reason(fakes):
    fakes["easy"].qk = decline
    with pytest.raises(ExceptionGroup) as info:
        dispatch.call("qk", None, 1)
    assert len(info.value.exceptions) == 2


def test_what_is_for_another_platform_is_not_imported(fakes, monkeypatch):
    """Its import would make every first call on a CPU wait."""
    monkeypatch.setattr(dispatch, "_PLATFORM", {"picky": "no such platform"})
    monkeypatch.delenv("NATJAX_INTERPRET", raising=False)
    del fakes["picky"].qk  # importing and asking it would be an AttributeError
    assert dispatch.call("qk", None, 1) == 2
    monkeypatch.setenv("NATJAX_INTERPRET", "1")
    with pytest.raises(AttributeError):
        dispatch.call("qk", None, 1)


def test_an_implementation_goes_with_its_file(monkeypatch):
    found = dispatch.importlib.util.find_spec
    dispatch.available.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(
            dispatch.importlib.util, "find_spec", lambda n: None if n.endswith(".xla") else found(n)
        )
        assert dispatch.available() == tuple(n for n in dispatch.PREFERENCE if n != "xla")
        with pytest.raises(ValueError, match="one of"):
            dispatch.call("qk", "xla")
    dispatch.available.cache_clear()
    assert dispatch.available() == dispatch.PREFERENCE
