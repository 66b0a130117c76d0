"""`natjax.explain` tells what a call does, and why."""

import functools

import jax
import jax.numpy as jnp
import pytest

import natjax
from natjax.kernels import device, registry
from natjax.kernels.backends.triton_common.config import KernelConfig
from natjax.kernels.tuning import settings, tables

X = jax.ShapeDtypeStruct((2, 14, 14, 2, 32), "float32")
RPB = jax.ShapeDtypeStruct((2, 13, 13), "float32")


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    monkeypatch.delenv("NATJAX_INTERPRET", raising=False)
    monkeypatch.delenv("NATJAX_TUNED", raising=False)


@pytest.fixture
def on_cpu():
    if jax.default_backend() != "cpu":
        pytest.skip("this is about machines without an accelerator")


def test_on_a_cpu(on_cpu):
    told = natjax.explain(X, X, X, kernel_size=7)
    assert (told.op, told.device, told.chosen) == ("na2d", "cpu", "xla")
    assert list(told.reasons) == [
        "jax_triton",
        "pallas_triton",
        "mosaic_gpu",
        "mosaic_tpu",
        "reference",
    ]
    assert "needs an NVIDIA GPU" in told.reasons["pallas_triton"]
    assert "runs only where it is named" in told.reasons["mosaic_gpu"]
    assert "needs a TPU" in told.reasons["mosaic_tpu"]
    assert told.reasons["reference"] == 'not asked: "xla" comes first'
    assert told.settings == ()
    assert str(told).startswith('na2d on cpu: implementation "xla"\n  not "jax_triton":')
    assert len(str(told).splitlines()) == 6


def test_settings_of_kernels_and_their_sources(interpreted):
    given = KernelConfig((2, 8), (4, 4), num_warps=2, num_stages=3)
    with settings.using({"dquery": given}):
        told = natjax.explain(X, X, X, 7, dilation=2, rpb=RPB, implementation="pallas_triton")
    assert told.chosen == "pallas_triton"
    assert [x.kernel for x in told.settings] == ["forward", "dquery", "dkeyvalue", "dbias"]
    assert [x.source for x in told.settings] == ["suggested", "given", "suggested", "suggested"]
    assert told.settings[1].config == given
    (line,) = (line.split() for line in str(told).splitlines() if "dquery" in line)
    assert line == ["dquery", "2x8", "4x4", "2", "3", "given"]
    without_bias = natjax.explain(X, X, X, 7, implementation="pallas_triton")
    assert [x.kernel for x in without_bias.settings] == ["forward", "dquery", "dkeyvalue"]


def test_tuned_settings_are_what_the_op_then_uses(interpreted, monkeypatch, tmp_path):
    explain = functools.partial(natjax.explain, X, X, X, 7, implementation="pallas_triton")
    (before,) = (x for x in explain().settings if x.kernel == "forward")
    tuned = KernelConfig((1, 16), (16, 1))
    assert before.config != tuned
    path = tables.path_of("pallas_triton", device.kind(), tmp_path)
    tables.update(path, before.spec.key, "forward", tuned, {})
    monkeypatch.setenv("NATJAX_TUNED", str(tmp_path))
    (after,) = (x for x in explain().settings if x.kernel == "forward")
    assert (after.config, after.source) == (tuned, "NATJAX_TUNED")


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_every_op(ndim, interpreted):
    x = jnp.zeros((1, *(5,) * ndim, 2, 8))
    weights = jnp.zeros((*x.shape[:-1], 3**ndim))
    explain = functools.partial(natjax.explain, kernel_size=3, implementation="pallas_triton")
    told = {
        "": explain(x, x, x),
        "_qk": explain(query=x, key=x, op="qk"),
        "_av": explain(weights, x, op="av"),
    }
    for suffix, explanation in told.items():
        assert explanation.op == f"na{ndim}d{suffix}"
        assert explanation.chosen == "pallas_triton"
    for suffix in ("_qk", "_av"):
        assert [x.kernel for x in told[suffix].settings] == ["qk", "av", "av_transposed"]


def test_a_named_implementation_is_asked_alone(on_cpu):
    told = natjax.explain(X, X, X, 7, implementation="reference")
    assert told.chosen == "reference"
    assert set(told.reasons.values()) == {'not asked: the call names "reference"'}
    told = natjax.explain(X, X, X, 7, implementation="pallas_triton")
    assert told.chosen is None
    assert "needs an NVIDIA GPU" in told.reasons["pallas_triton"]
    assert str(told).startswith("na2d on cpu: no implementation")
    with pytest.raises(NotImplementedError, match="needs an NVIDIA GPU"):
        jax.eval_shape(lambda x: natjax.na2d(x, x, x, 7, implementation="pallas_triton"), X)


def test_an_implementation_without_its_file(monkeypatch, interpreted):
    rest = {x.name: x for x in registry.IMPLEMENTATIONS if x.platform is None}
    monkeypatch.setattr(registry, "available", lambda: rest)
    told = natjax.explain(X, X, X, 7)
    assert told.chosen == "xla"
    assert told.reasons["pallas_triton"] == "its module is not there"
    with pytest.raises(ValueError, match="implementation must be None or one of"):
        natjax.explain(X, X, X, 7, implementation="pallas_triton")


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "message"),
    [
        ((X, X, X, 15), {}, ValueError, "kernel_size . dilation must not exceed"),
        ((X, X, X, 7), {"stride": 8}, ValueError, "stride must not exceed kernel_size"),
        ((X, X, X, 7), {"scale": 0.0}, ValueError, "scale must be.*got 0.0"),
        ((X, X, X, 7), {"implementation": "cuda"}, ValueError, "implementation must be.*'cuda'"),
        ((X, X, X, 7), {"op": "na2d"}, ValueError, "op must be one of.*got 'na2d'"),
        ((X, X, X), {}, TypeError, "kernel_size"),
        ((X, X, 7), {"op": "qk", "sinks": 2}, TypeError, "sinks"),
        ((), {}, ValueError, "query must be an array of 4, 5 or 6 dimensions; got None"),
        ((RPB, RPB, RPB, 7), {}, ValueError, r"4, 5 or 6 dimensions; got \(2, 13, 13\)"),
    ],
    ids=[f"case{i}" for i in range(9)],
)
def test_errors_are_those_of_the_op(args, kwargs, error, message, unchecked):
    with pytest.raises(error, match=message):
        natjax.explain(*args, **kwargs)


def test_nothing_is_computed():
    """Not even for a call that would take terabytes."""
    large = jax.ShapeDtypeStruct((64, 1024, 1024, 16, 128), "bfloat16")
    assert natjax.explain(large, large, large, 33).chosen is not None
