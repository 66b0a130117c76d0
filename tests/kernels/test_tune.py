"""Measuring settings, on interpreted kernels: what is measured, not how fast it is."""

import types

import jax
import numpy as np
import pytest

from natjax.kernels import configs, device, dispatch, tune
from natjax.kernels.configs import KernelConfig
from natjax.kernels.problems import Problem

pytestmark = [
    pytest.mark.skipif(
        "triton" not in dispatch.available(), reason="the kernels that are tuned are not there"
    ),
]

TINY = Problem(name="tiny", shape=(20,), kernel_size=(3,), is_causal=True)
TINY_2D = Problem(name="tiny-2d", shape=(5, 6), kernel_size=(3, 3), dilation=(1, 2), rpb=False)


@pytest.fixture
def measuring(interpreted, monkeypatch):
    """Interpreted, without tables, and each candidate runs but once a round."""
    monkeypatch.delenv("NATJAX_TUNED", raising=False)
    monkeypatch.setattr(tune, "_MOST_RUNS", 1)


def test_every_kernel_of_an_op(measuring):
    begun = []
    results = list(
        tune.tune(
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
        assert result.shape.key == "20k3s1d1c-8-8-float32-bias"
        assert result.skipped == {}
        assert result.measured >= 2
        assert 0 < result.seconds <= result.suggested_seconds


def test_the_unfused_ops(measuring):
    ops = ("qk", "av")
    found = {
        (x.kernel, x.shape.has_bias): x.config
        for x in tune.tune([TINY], dtype="float32", ops=ops, limit=1, repeats=1)
    }
    assert set(found) == {(k, b) for k in ("qk", "av", "av_transposed") for b in (True, False)}
    assert None not in found.values()


def test_each_kernel_is_measured_alone(measuring):
    """A program runs the kernel with the settings at hand, and not those of other kernels."""
    case = tune._Case.of("attention", TINY, "float32")
    for kernel in ("forward", "dquery", "dkeyvalue", "dbias"):
        trace, inputs = tune._program(case, kernel)
        text = jax.jit(trace()).lower(*inputs).compile().as_text()
        assert f"natjax_{kernel}" in text
        for other in ("forward", "dquery", "dkeyvalue", "dbias"):
            assert other == kernel or f"natjax_{other}" not in text


def test_programs_compute_the_gradients(measuring):
    case = tune._Case.of("attention", TINY_2D, "float32")
    trace, inputs = tune._program(case, "dkeyvalue")
    config = KernelConfig((4, 4), (2, 8))
    with configs.using({"dkeyvalue": config}), configs.watching() as seen:
        actual = jax.jit(trace())(*inputs)
    assert config in [x.config for x in seen]
    _, pull = jax.vjp(case.function, case.arrays)
    expected = pull(inputs[1])[0]
    np.testing.assert_allclose(actual[0], expected["key"], atol=1e-5)
    np.testing.assert_allclose(actual[1], expected["value"], atol=1e-5)


def test_candidates_that_fail_or_err_are_skipped_and_counted(measuring, monkeypatch):
    case = tune._Case.of("attention", TINY, "float32")
    suggested = configs.suggest("forward", case.shape)
    bad = {
        KernelConfig((16,), (16,), num_warps=8): "spill",
        KernelConfig((16,), (32,), num_warps=8): "wrong",
        KernelConfig((32,), (16,), num_warps=8): "shared",
    }
    compile_ = tune._compile

    def failing(lowered):
        kind = next(iter(queue.pop(0)))
        if kind == "spill":
            raise RuntimeError("Compilation result discarded due to register spilling")
        if kind == "shared":
            raise RuntimeError("RESOURCE_EXHAUSTED: Shared memory size limit exceeded")
        program = compile_(lowered)
        return (lambda *x: program(*x) + 1) if kind == "wrong" else program

    queue = [("right",), *((kind,) for kind in bad.values())]
    monkeypatch.setattr(tune, "_compile", failing)
    monkeypatch.setattr(tune.os, "cpu_count", lambda: 1)  # in order
    monkeypatch.setattr(tune, "candidates", lambda *args: [suggested, *bad])
    monkeypatch.setattr(tune, "variants", lambda *args: [])
    (result,) = (tune._Search(case, k, 1).run(4) for k in ["forward"])
    assert result.config == suggested
    assert result.measured == 1
    assert result.skipped == {
        "spills registers": 1,
        "too much shared memory": 1,
        "ArithmeticError: another result than the first candidate's": 1,
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
    assert tune._agree(np.array(actual), expected, 1e-2) is agrees


def test_not_a_number_agrees_with_nothing():
    assert not tune._agree(np.array([np.nan]), np.array([np.nan]), 1.0)


def test_where_nothing_works_there_are_no_settings(measuring, monkeypatch):
    def fail(lowered):
        raise RuntimeError("no")

    monkeypatch.setattr(tune, "_compile", fail)
    (result,) = (x for x in tune.tune([TINY], limit=1) if x.kernel == "forward")
    assert result.config is None
    assert np.isnan(result.seconds)
    assert result.skipped == {"RuntimeError: no": 1}


def test_what_is_found_is_used_for_the_kernels_after_it(measuring, monkeypatch):
    seen = []

    class Search:
        def __init__(self, case, kernel, repeats):
            self.found = dict(configs._overrides[-1])
            self.result = tune.Result(
                problem="", kernel=kernel, shape=case.shape, seconds=1.0, suggested_seconds=1.0,
                config=KernelConfig((16,), (16,)), measured=1, skipped={},
            )  # fmt: skip

        def run(self, limit):
            seen.append(list(self.found))
            return self.result

    monkeypatch.setattr(tune, "_Search", Search)
    list(tune.tune([TINY]))
    assert seen == [[], ["forward"], ["forward", "dquery"], ["forward", "dquery", "dkeyvalue"]]


def gpu(capability):
    return lambda: types.SimpleNamespace(platform="gpu", compute_capability=capability)


def test_candidates_fit_the_device(measuring, monkeypatch):
    problem = Problem(name="", shape=(56, 56), kernel_size=(7, 7), head_dim=64)
    hood = problem.neighborhood
    shape = configs.Shape(hood, 64, 64, "float32", True)
    chosen = {}
    for capability in ("8.6", "9.0"):
        monkeypatch.setattr(device, "target", gpu(capability))
        chosen[capability] = tune.candidates("forward", shape, 1000)
        assert chosen[capability][0] == configs.suggest("forward", shape)
        assert len(set(chosen[capability])) == len(chosen[capability])
        costs = [configs.cost("forward", shape, x) for x in chosen[capability][1:]]
        assert costs == sorted(costs)
    assert len(chosen["8.6"]) < len(chosen["9.0"])
    assert tune.candidates("forward", shape, 5) == chosen["9.0"][:5]
    config = chosen["9.0"][0]
    others = tune.variants("forward", shape, config)
    assert config not in others
    assert {x.num_stages for x in others} >= {1, 2, 3}
    assert len({x.num_warps for x in others}) > 1
    assert {(x.tile, x.chunk) for x in others} == {(config.tile, config.chunk)}


def test_strides_have_no_unfused_op():
    problem = Problem(name="strided", shape=(9,), kernel_size=(3,), stride=2)
    with pytest.raises(ValueError, match="stride must be 1 for the ops qk and av; got 2 in strid"):
        tune._require_unfused_without_stride([TINY, problem], ("attention", "qk"))
    tune._require_unfused_without_stride([problem], ("attention",))


def test_without_a_gpu():
    if jax.default_backend() == "gpu":
        pytest.skip("this is about machines without a GPU")
    with pytest.raises(NotImplementedError, match=r"tuning needs an NVIDIA GPU.*got a cpu device"):
        next(tune.tune([TINY]))
