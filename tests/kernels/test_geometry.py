"""What neighborhoods can be beyond NATTEN's: circles, masks, parts, queries on a finer grid."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from calls import assert_close, value_and_gradients
from geometry import CASES, Case, cases, named
from hypothesis import given, settings
from jax.test_util import check_grads

import natjax
from natjax.kernels import checks, registry
from natjax.kernels.backends.xla.fused import Tiling
from natjax.kernels.neighborhood import Neighborhood

# What quick tests run: each feature once. Other cases have the same features one by one.
QUICK = (
    "periodic-dilation-stride",
    "one-periodic-axis-one-causal",
    "mask-extra-stride",
    "part-ragged-dilation",
    "part-of-a-circle",
    "everything",
)
ALSO_UNFUSED = QUICK[1:4]


def chosen(quick):
    marks = {case.name: [] if case.name in quick else [pytest.mark.slow] for case in CASES}
    return [pytest.param(case, id=case.name, marks=marks[case.name]) for case in CASES]


@pytest.mark.parametrize("case", chosen(QUICK))
def test_fused_agrees_with_the_reference(case, x64):
    arrays = case.arrays()
    expected = value_and_gradients(case.fused("reference"), arrays)
    assert_close(value_and_gradients(case.fused("xla"), arrays), expected, "float64")


@pytest.mark.parametrize("case", chosen(ALSO_UNFUSED))
def test_unfused_agrees_with_the_reference(case, x64):
    arrays = {k: v for k, v in case.arrays().items() if k in ("query", "key", "value", "rpb")}
    expected = value_and_gradients(case.unfused("reference"), arrays)
    assert_close(value_and_gradients(case.unfused("xla"), arrays), expected, "float64")


@pytest.mark.slow
@settings(max_examples=60)
@given(case=cases())
def test_any_combination_agrees_with_the_reference(case):
    with jax.enable_x64(True):
        for function in (case.fused, case.unfused):
            arrays = case.arrays()
            if function == case.unfused:
                arrays = {k: v for k, v in arrays.items() if k in ("query", "key", "value", "rpb")}
            expected = value_and_gradients(function("reference"), arrays)
            actual = value_and_gradients(function("xla"), arrays)
            # Where all is hidden all is 0, and has no size to compare with.
            close = functools.partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-12)
            jax.tree.map(close, actual, expected)


@pytest.mark.parametrize(
    ("name", "mode", "order", "implementation"),
    [
        ("mask-extra-stride", "rev", 1, "xla"),
        *(
            pytest.param("everything", *x, marks=pytest.mark.slow)
            for x in (("rev", 2, "xla"), ("fwd", 2, "xla"), ("rev", 2, "reference"))
        ),
    ],
)
def test_derivatives_against_finite_differences(name, mode, order, implementation, x64):
    case = named(name)
    run = jax.jit(case.fused(implementation))
    check_grads(run, (case.arrays(),), order=order, modes=[mode], rtol=1e-6)


QKV = np.random.default_rng(0).standard_normal((3, 1, 12, 10, 1, 4))


@pytest.mark.parametrize("implementation", ["reference", "xla"])
def test_a_circle_is_padding_all_round_and_cropping(implementation, x64):
    """What people do without periodic axes: the keys once more on both sides."""
    q, k, v = jnp.asarray(QKV)
    options = {"kernel_size": (3, 4), "dilation": (1, 2), "implementation": implementation}
    rpb = jnp.asarray(np.random.default_rng(1).standard_normal((1, 5, 7)))
    around = natjax.na2d(q, k, v, rpb=rpb, is_periodic=(False, True), **options)
    padded = (jnp.concatenate([x] * 3, axis=2) for x in (q, k, v))
    cropped = natjax.na2d(*padded, rpb=rpb, **options)[:, :, 10:20]
    np.testing.assert_allclose(around, cropped, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("implementation", ["reference", "xla"])
def test_finer_queries_are_queries_among_keys_laid_out_as_often(implementation, x64):
    """Each key repeated for each of its queries, and a dilation that takes every one once."""
    ratio, (_, k, v) = 2, jnp.asarray(QKV)
    q = jnp.asarray(np.random.default_rng(1).standard_normal((1, 24, 20, 1, 4)))
    options = {"kernel_size": (3, 5), "implementation": implementation}
    fine = natjax.na2d(q, k, v, query_ratio=ratio, **options)
    repeated = (jnp.repeat(jnp.repeat(x, ratio, axis=1), ratio, axis=2) for x in (k, v))
    expected = natjax.na2d(q, *repeated, dilation=ratio, **options)
    np.testing.assert_allclose(fine, expected, rtol=1e-12, atol=1e-14)


def dense(q, k, v, mask, extra=None):
    """Attention over 1-D tokens, written down once more."""
    logits = jnp.einsum("bqnd,bknd->bnqk", q, k) * q.shape[-1] ** -0.5
    logits = jnp.where(mask, logits, -jnp.inf)
    if extra is not None:
        more = jnp.broadcast_to(extra[None, :, None, None], (*logits.shape[:-1], 1))
        logits = jnp.concatenate([logits, more], axis=-1)
    weights = jax.nn.softmax(logits)[..., : k.shape[1]]
    return jnp.einsum("bnqk,bknd->bqnd", weights, v)


@pytest.mark.parametrize("implementation", ["reference", "xla"])
def test_masks_are_infinitely_negative_logits_and_sinks_one_more(implementation, x64):
    q, k, v = jnp.asarray(QKV[:, :, :, 0])
    shown = jnp.asarray(np.random.default_rng(3).random((1, 12)) > 0.3)
    seen = checks.neighborhood((12,), 5).dense_mask()[None, None] & shown[:, None, None]
    seen = seen | jnp.eye(12, dtype=bool)[None, None]  # so that each sees something
    sinks = jnp.asarray([0.7])
    for sink in (None, sinks):
        options = {"key_mask": shown, "sinks": sink, "implementation": implementation}
        out = natjax.na1d(q, k, v, 5, **options)
        rows = np.asarray(shown[0])
        expected = dense(q, k, v, seen, sink)
        np.testing.assert_allclose(out[:, rows], expected[:, rows], rtol=1e-12)


@pytest.mark.parametrize("implementation", ["reference", "xla"])
def test_what_is_hidden_is_not_computed_with(implementation, x64):
    """Nan in a hidden key reaches neither outputs nor gradients; who sees nothing gives zeros."""
    q, k, v = jnp.asarray(QKV[:, :, :, 0])
    shown = jnp.arange(12)[None] < 4
    k, v = (jnp.where(shown[..., None, None], x, jnp.nan) for x in (k, v))

    def loss(arrays):
        out, lse = natjax.na1d(
            *arrays, 3, key_mask=shown, return_lse=True, implementation=implementation
        )
        return jnp.sum(out**2) + jnp.sum(jnp.where(jnp.isfinite(lse), lse, 0.0)), (out, lse)

    (_, (out, lse)), gradients = jax.value_and_grad(loss, has_aux=True)((q, k, v))
    assert np.isfinite(np.asarray(out)).all()
    np.testing.assert_array_equal(np.isneginf(np.asarray(lse)[0, :, 0]), np.arange(12) > 4)
    np.testing.assert_array_equal(out[:, 5:], 0)
    for gradient in gradients:
        assert np.isfinite(np.asarray(gradient)).all()
        np.testing.assert_array_equal(gradient[:, 5:], 0)


@pytest.mark.parametrize("is_periodic", [False, True])
def test_parts_of_an_axis_make_the_whole(is_periodic, x64):
    """One program for four devices: which part it is for is known when it runs."""
    q, k, v = jnp.asarray(np.random.default_rng(0).standard_normal((3, 2, 24, 2, 3)))
    rpb = jnp.asarray(np.random.default_rng(1).standard_normal((2, 9)))
    window = {"kernel_size": 5, "stride": 2, "dilation": 2, "is_periodic": is_periodic}
    whole = checks.neighborhood((24,), **window)
    axis = dataclasses.replace(whole.axes[0], queries=(0, 6), origins=range(0, 24, 6))
    axis = dataclasses.replace(axis, keys=axis.needed_keys)
    expected = natjax.na1d(q, k, v, rpb=rpb, return_lse=True, **window)
    options = {"additional_keys": None, "additional_values": None, "rpb": rpb, "scale": 3**-0.5}

    @jax.jit
    def attend(part, q, k, v):
        return registry.call(
            "attention", "xla", q, k, v, Neighborhood((axis,)), part=part[None], **options
        )

    for part, origin in enumerate(axis.origins):
        tokens = origin + np.arange(*axis.keys)
        outside = (tokens < 0) | (tokens >= 24)
        keys, values = (x[:, tokens % 24] for x in (k, v))
        if not is_periodic:  # what neighbors at a border have is anything
            keys, values = (x.at[:, outside].set(1e3) for x in (keys, values))
        actual = attend(part, q[:, origin : origin + 6], keys, values)
        for x, y in zip(actual, expected, strict=True):
            np.testing.assert_allclose(x, y[:, origin : origin + 6], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("implementation", ["reference", "xla"])
def test_a_decoder_that_adds_frames_to_a_cache_gives_what_one_call_does(implementation, x64):
    """Frame by frame, compiled once: the frames before the first one are hidden."""
    q, k, v = jnp.asarray(np.random.default_rng(0).standard_normal((3, 1, 6, 3, 3, 1, 4)))
    window = {"is_causal": (True, False, False), "implementation": implementation}
    expected = natjax.na3d(q, k, v, kernel_size=(3, 2, 3), **window)

    @jax.jit
    def step(cache, frame):
        pairs = zip(cache, frame[1:], strict=True)
        cache = [jnp.concatenate([x[:, 1:], new], axis=1) for x, new in pairs]
        keys, values, seen = cache
        out = natjax.na3d(
            frame[0],
            keys,
            values,
            kernel_size=(3, 2, 3),
            key_mask=seen,
            query_offset=(2, 0, 0),
            **window,
        )
        return cache, out

    cache = [jnp.zeros_like(x[:, :3]) for x in (k, v)] + [jnp.zeros((1, 3, 3, 3), bool)]
    for t in range(6):
        new = [x[:, t : t + 1] for x in (q, k, v)] + [jnp.ones((1, 1, 3, 3), bool)]
        cache, out = step(cache, new)
        np.testing.assert_allclose(out, expected[:, t : t + 1], rtol=1e-12, atol=1e-14)


def test_a_cache_of_a_dilated_window_holds_what_lies_between_too(x64):
    q, k, v = jnp.asarray(np.random.default_rng(0).standard_normal((3, 1, 12, 1, 4)))
    expected = natjax.na1d(q, k, v, 4, dilation=2, is_causal=True)
    last = natjax.na1d(
        *(q[:, 11:], k[:, 5:], v[:, 5:]),
        kernel_size=4,
        dilation=2,
        is_causal=True,
        length=8,
        key_offset=1,
        query_offset=7,
    )
    np.testing.assert_allclose(last, expected[:, 11:], rtol=1e-12)


def test_gpu_kernels_have_finer_queries_and_sinks(interpreted):
    case = Case(
        name="kernels",
        keys=(9,),
        queries=(18,),
        heads=4,
        window={"kernel_size": 3, "stride": 2, "query_ratio": 2},
        sinks=True,
    )
    arrays = case.arrays("float32")
    expected = value_and_gradients(case.fused("reference"), arrays)
    assert_close(value_and_gradients(case.fused("pallas_triton"), arrays), expected)


def test_dropout_drops_its_share_and_the_same_for_all(x64, monkeypatch):
    q, k, v = jnp.zeros((3, 2, 64, 2, 1))
    options = {"dropout_rate": 0.3, "dropout_key": jax.random.key(0)}

    def dropped(implementation, **more):
        """Which weights are 0: values tell keys apart."""
        pull = jax.vjp(
            lambda v: natjax.na1d(q, k, v, 64, implementation=implementation, **options | more), v
        )[1]
        rows = [pull(jnp.zeros_like(q).at[:, i].set(1.0))[0][..., 0] for i in range(0, 64, 7)]
        return np.asarray(jnp.stack(rows)) == 0

    first = dropped("xla")
    np.testing.assert_array_equal(first, dropped("reference"))
    tilings = "natjax.kernels.backends.xla.fused.TILINGS"
    monkeypatch.setattr(tilings, {"cpu": Tiling(0, 2**19, 8)})
    jax.clear_caches()
    np.testing.assert_array_equal(first, dropped("xla"))
    assert abs(first.mean() - 0.3) < 0.02
    # Neighboring queries, keys, heads and images go their own way.
    for axis in range(4):
        low, high = np.moveaxis(first, axis, 0)[:-1], np.moveaxis(first, axis, 0)[1:]
        assert abs((low & high).mean() - 0.09) < 0.02
    assert (first != dropped("xla", dropout_key=jax.random.key(1))).mean() > 0.3


def test_gpu_kernels_say_who_takes_what_they_do_not(interpreted):
    x = jnp.zeros((1, 8, 2, 16))
    mask = jnp.ones((1, 8), bool)
    for options, name in (
        ({"is_periodic": True}, "is_periodic"),
        ({"key_mask": mask}, "key_mask"),
        ({"logit_soft_cap": 3.0}, "soft_cap"),
        ({"dropout_rate": 0.1, "dropout_key": jax.random.key(0)}, "dropout"),
    ):
        with pytest.raises(NotImplementedError, match=f'got .*{name}.*implementation="xla"'):
            natjax.na1d(x, x, x, 3, implementation="pallas_triton", **options)
        told = natjax.explain(x, x, x, 3, **options)
        assert told.chosen == "xla"
