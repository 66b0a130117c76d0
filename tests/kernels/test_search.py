"""Measuring settings, on interpreted kernels: what is measured, not how fast it is."""

import types

import jax
import numpy as np
import pytest

from natjax.kernels import device, registry
from natjax.kernels.backends.pallas_triton import candidates
from natjax.kernels.backends.triton_common import config
from natjax.kernels.backends.triton_common.config import KernelConfig
from natjax.kernels.spec import CallSpec
from natjax.kernels.tuning import search, settings
from natjax.kernels.tuning.problems import Problem

pytestmark = [
    pytest.mark.skipif(
        "pallas_triton" not in registry.names(), reason="the kernels that are tuned are not there"
    ),
]

TINY = Problem(name="tiny", shape=(20,), kernel_size=(3,), is_causal=True)
TINY_2D = Problem(name="tiny-2d", shape=(5, 6), kernel_size=(3, 3), dilation=(1, 2), rpb=False)


@pytest.fixture
def measuring(interpreted, monkeypatch):
    """Interpreted, without tables, and each candidate runs but once a round."""
    monkeypatch.delenv("NATJAX_TUNED", raising=False)
    monkeypatch.setattr(search, "_MOST_RUNS", 1)


def test_every_kernel_of_an_op(measuring):
    begun = []
    results = list(
        search.tune(
            [TINY, TINY],
            dtype="float32",
            limit=1,
            repeats=1,
            begin=lambda *names: begun.append(names),
        )
    )
    assert [x.kernel for x in results] == ["forward", "dquery", "dkeyvalue", "dbias"]
    assert begun == [("tiny", x.kernel) for x in results]
    for result in results:
        assert result.spec.key == "20k3s1d1c-8-8-tf32x3-bias"
        assert result.skipped == {}
        assert result.measured >= 2
        assert 0 < result.seconds <= result.suggested_seconds


def test_the_unfused_ops(measuring):
    ops = ("qk", "av")
    found = {
        (x.kernel, x.spec.has_bias): x.config
        for x in search.tune([TINY], dtype="float32", ops=ops, limit=1, repeats=1)
    }
    assert set(found) == {(k, b) for k in ("qk", "av", "av_transposed") for b in (True, False)}
    assert None not in found.values()


def test_each_kernel_is_measured_alone(measuring):
    """But for those that take what "dquery" makes."""
    case = search._Case.of("attention", TINY, "float32", "pallas_triton")
    for kernel in ("forward", "dquery", "dkeyvalue", "dbias"):
        trace, inputs = search._program(case, kernel)
        text = jax.jit(trace()).lower(*inputs).compile().as_text()
        assert f"natjax_{kernel}" in text
        for other in ("forward", "dquery", "dkeyvalue", "dbias"):
            is_needed = other == kernel or (other == "dquery" and kernel in ("dkeyvalue", "dbias"))
            assert (f"natjax_{other}" in text) == is_needed


def test_programs_compute_the_gradients(measuring):
    case = search._Case.of("attention", TINY_2D, "float32", "pallas_triton")
    trace, inputs = search._program(case, "dkeyvalue")
    config = KernelConfig((4, 4), (2, 8))
    with settings.using({"dkeyvalue": config}), settings.watching() as seen:
        actual = jax.jit(trace())(*inputs)
    assert config in [x.config for x in seen]
    _, pull = jax.vjp(case.measured, case.arrays)
    expected = pull(inputs[1])[0]
    np.testing.assert_allclose(actual[0], expected["key"], atol=1e-5)
    np.testing.assert_allclose(actual[1], expected["value"], atol=1e-5)


def test_candidates_that_fail_or_err_are_skipped_and_counted(measuring, monkeypatch):
    case = search._Case.of("attention", TINY, "float32", "pallas_triton")
    suggested = KernelConfig.suggest("forward", case.spec)
    bad = {
        KernelConfig((16,), (16,), num_warps=8): "spill",
        KernelConfig((16,), (32,), num_warps=8): "wrong",
        KernelConfig((32,), (16,), num_warps=8): "shared",
    }
    compile_ = search._compile

    def failing(lowered):
        kind = next(iter(queue.pop(0)))
        if kind == "spill":
            raise RuntimeError("Compilation result discarded due to register spilling")
        if kind == "shared":
            raise RuntimeError("RESOURCE_EXHAUSTED: Shared memory size limit exceeded")
        program = compile_(lowered)
        return (lambda *x: program(*x) + 1) if kind == "wrong" else program

    queue = [("right",), *((kind,) for kind in bad.values())]
    monkeypatch.setattr(search, "_compile", failing)
    monkeypatch.setattr(search.os, "cpu_count", lambda: 1)  # in order
    monkeypatch.setattr(candidates, "candidates", lambda *args: [suggested, *bad])
    monkeypatch.setattr(candidates, "variants", lambda *args: [])
    (result,) = (search._Search(case, k, 1).run(4) for k in ["forward"])
    assert result.config == suggested
    assert result.measured == 1
    assert result.skipped == {
        "spills registers": 1,
        "too much shared memory": 1,
        'ArithmeticError: another result than "xla"': 1,
    }


@pytest.mark.parametrize(
    ("actual", "agrees"),
    [
        ([1.0, -10.0, -np.inf], True),
        ([1.05, -10.0, -np.inf], True),  # of the largest, a small part
        ([1.2, -10.0, -np.inf], False),
        ([1.0, -10.0, 0.0], False),
        ([1.0, -np.inf, -np.inf], False),
        ([np.nan, -10.0, -np.inf], False),
    ],
)
def test_results_agree(actual, agrees):
    expected = np.array([1.0, -10.0, -np.inf])
    assert search._agree(np.array(actual), expected, 1e-2) is agrees


def test_not_a_number_agrees_with_nothing():
    assert not search._agree(np.array([np.nan]), np.array([np.nan]), 1.0)


def test_where_nothing_works_there_are_no_settings(measuring, monkeypatch):
    def fail(lowered):
        raise RuntimeError("no")

    monkeypatch.setattr(search, "_compile", fail)
    (result,) = (x for x in search.tune([TINY], limit=1) if x.kernel == "forward")
    assert result.config is None
    assert np.isnan(result.seconds)
    assert result.skipped == {"RuntimeError: no": 1}


def test_what_is_found_is_used_for_the_kernels_after_it(measuring, monkeypatch):
    seen = []

    class Search:
        def __init__(self, case, kernel, repeats):
            self.found = dict(settings.given())
            self.result = search.Result(
                problem="", kernel=kernel, spec=case.spec, seconds=1.0, suggested_seconds=1.0,
                config=KernelConfig((16,), (16,)), measured=1, skipped={},
            )  # fmt: skip

        def run(self, limit):
            seen.append(list(self.found))
            return self.result

    monkeypatch.setattr(search, "_Search", Search)
    list(search.tune([TINY]))
    assert seen == [[], ["forward"], ["forward", "dquery"], ["forward", "dquery", "dkeyvalue"]]


def gpu(capability):
    return lambda: types.SimpleNamespace(platform="gpu", compute_capability=capability)


def test_candidates_fit_the_device(measuring, monkeypatch):
    problem = Problem(name="", shape=(56, 56), kernel_size=(7, 7), head_dim=64)
    neighborhood = problem.neighborhood
    spec = CallSpec(neighborhood, 64, 64, "float32", True)
    chosen = {}
    for capability in ("8.6", "9.0"):
        monkeypatch.setattr(device, "target", gpu(capability))
        chosen[capability] = candidates.candidates("forward", spec, 1000)
        assert chosen[capability][0] == KernelConfig.suggest("forward", spec)
        assert len(set(chosen[capability])) == len(chosen[capability])
        costs = [config.cost("forward", spec, x) for x in chosen[capability][1:]]
        assert costs == sorted(costs)
    assert len(chosen["8.6"]) < len(chosen["9.0"])
    assert candidates.candidates("forward", spec, 5) == chosen["9.0"][:5]
    best = chosen["9.0"][0]
    others = candidates.variants("forward", spec, best)
    assert best not in others
    assert {x.num_stages for x in others} >= {1, 2, 3}
    assert len({x.num_warps for x in others}) > 1
    assert {(x.tile, x.chunk) for x in others} == {(best.tile, best.chunk)}


def test_without_a_gpu():
    if jax.default_backend() == "gpu":
        pytest.skip("this is about machines without a GPU")
    with pytest.raises(NotImplementedError, match=r"tuning needs an NVIDIA GPU.*got a cpu device"):
        next(search.tune([TINY]))
