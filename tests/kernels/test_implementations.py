"""Each implementation against the reference, and what an op must withstand in real programs."""

import contextlib
import functools
import math
import re

import edges
import goldens
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tolerances
from calls import (
    KERNELS,
    NAMES,
    assert_close,
    fused,
    plain_attention,
    unfused,
    value_and_gradients,
)
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads

import natjax
from natjax.kernels.backends.xla.fused import Tiling
from natjax.kernels.tuning import problems
from natjax.kernels.tuning.problems import Problem

OTHERS = [*(name for name in NAMES if name != "reference"), "toy"]

# What quick tests run: each feature once. The goldens have many more for all but kernels,
# which take seconds each interpreted.
QUICK = (
    "1d-window-is-input",
    "1d-causal-stride-dilation",
    "1d-ragged-dilation",
    "2d-prime",
    "2d-even-odd",
    "2d-mqa",
    "2d-everything",
    "3d-everything",
)
ALSO_QUICK = (
    "1d-window-1",
    "1d-one-token",
    "1d-blocked",
    "2d-window-1-along-an-axis",
    "2d-no-bias",
)


# Those that Triton's interpreter is done with in a few seconds.
QUICK_IN_TRITON = ("1d-window-is-input", "1d-causal-stride-dilation", "1d-ragged-dilation")


def is_quick(problem, name, dtype="float32"):
    """float32 is what kernels take; where there is float64, it says more."""
    if name == "jax_triton":
        return problem.name in QUICK_IN_TRITON
    if name == "mosaic_tpu" and problem.name in ("1d-window-is-input", "2d-even-odd", "2d-prime"):
        return False  # what they have is part of the others
    if name in (*KERNELS, "toy"):
        return dtype == "float32" and problem.name in QUICK
    return dtype == "float64" and problem.name in QUICK + ALSO_QUICK


def marks(is_quick):
    return [] if is_quick else [pytest.mark.slow]


@pytest.mark.parametrize(
    ("problem", "name", "dtype"),
    [
        pytest.param(p, x, y, id=f"{p.name}-{x}-{y}", marks=marks(is_quick(p, x, y)))
        for p in edges.EDGES
        for x in OTHERS
        for y in ("float32", "float64")
        if y == "float32" or x not in (*KERNELS, "toy")
    ],
)
def test_fused_agrees_with_the_reference(problem, dtype, name, interpreted, x64):
    arrays = problem.arrays(dtype=dtype)
    expected = value_and_gradients(fused(problem, "reference"), arrays)
    assert_close(value_and_gradients(fused(problem, name), arrays), expected, dtype)


@pytest.mark.parametrize(
    ("problem", "name"),
    [
        pytest.param(
            p,
            x,
            id=f"{p.name}-{x}",
            marks=marks(
                p.name in (QUICK_IN_TRITON if x == "jax_triton" else QUICK) and p.name != "2d-prime"
            ),
        )
        for p in edges.EDGES
        for x in OTHERS
        if not p.extra
    ],
)
def test_unfused_agrees_with_the_reference_and_with_fused(problem, name, interpreted):
    arrays = problem.arrays()
    expected = value_and_gradients(unfused(problem, "reference"), arrays)
    assert_close(value_and_gradients(unfused(problem, name), arrays), expected, "float32")
    out, _ = fused(problem, "reference")(arrays)
    assert goldens.error(expected[0][0], out) <= tolerances.VALUE["float32"]


@pytest.mark.parametrize(
    ("problem", "name"),
    [
        pytest.param(
            problem,
            name,
            id=f"{problem.name}-{name}",
            marks=[]
            if (problem == problems.NAT_TINY[3] and name not in ("jax_triton", "mosaic_tpu"))
            or (problem == problems.DINAT_TINY[2] and name != "jax_triton")
            or (problem is problems.DINAT_TINY[1] and name == "xla")
            else [pytest.mark.slow],
        )
        for problem in problems.NAT_TINY + problems.NAT_BASE + problems.DINAT_TINY
        for name in OTHERS
    ],
)
def test_layers_of_the_published_models(problem, name, interpreted):
    problem = Problem(**{f: getattr(problem, f) for f in problem.__slots__} | {"batch": 1})
    arrays = problem.arrays()
    expected = value_and_gradients(fused(problem, "reference"), arrays)
    assert_close(value_and_gradients(fused(problem, name), arrays), expected, "float32")


@pytest.mark.parametrize("with_bias", [True, False])
def test_nan_in_a_key_stays_with_those_who_see_it(with_bias, implementation):
    """What a query does not see is not computed with; here the tiles and slabs hold all tokens."""
    problem = problems.Problem(name="nan", shape=(9, 8), kernel_size=(3, 3), heads=2, rpb=with_bias)
    arrays = problem.arrays()
    broken = arrays | {"key": arrays["key"].at[0, 4, 3].set(jnp.nan)}
    seen = problem.neighborhood.dense_mask()[:, 4 * 8 + 3].reshape(9, 8)
    expected = fused(problem, implementation)(arrays)
    actual = fused(problem, implementation)(broken)
    for x, y in zip(actual, expected, strict=True):
        assert np.isnan(np.asarray(x)[0, seen]).all()
        np.testing.assert_array_equal(np.asarray(x)[0, ~seen], np.asarray(y)[0, ~seen])
    logits = unfused(problem, implementation)(broken)[1]
    np.testing.assert_array_equal(np.isnan(logits).any(axis=(-1, -2))[0], seen)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("2d-everything", "bfloat16"),
        pytest.param("2d-prime", "float16", marks=pytest.mark.slow),
        pytest.param("2d-everything", "float16", marks=pytest.mark.slow),
        pytest.param("3d", "bfloat16", marks=pytest.mark.slow),
    ],
)
def test_low_precision_errs_at_most_twice_as_much_as_a_plain_version(
    name, dtype, implementation, x64
):
    """The rule of flash attention's tests: no bound of our own, but that of plain attention."""
    if (implementation, dtype) == ("mosaic_tpu", "float16"):
        pytest.skip("kernels for TPUs take bfloat16 and float32, and decline float16")
    (problem,) = (p for p in edges.EDGES if p.name == name)
    low = problem.arrays(dtype=dtype)
    exact = {k: jnp.asarray(v, jnp.float64) for k, v in low.items()}
    truth = value_and_gradients(fused(problem, "reference"), exact)
    plain = value_and_gradients(functools.partial(plain_attention, problem), low)
    actual = value_and_gradients(fused(problem, implementation), low)
    assert actual[0][0].dtype == dtype
    assert actual[0][1].dtype == jnp.float32
    pairs = {"out": (actual[0][0], plain[0][0], truth[0][0])}
    pairs |= {f"d{k}": (actual[1][k], plain[1][k], truth[1][k]) for k in low}
    for key, (x, y, z) in pairs.items():
        error = np.abs(np.asarray(x, np.float64) - z).max()
        allowed = 2 * np.abs(np.asarray(y, np.float64) - z).max()
        assert error <= allowed, (key, error, allowed)


SMALL = Problem(
    name="small",
    shape=(7, 9),
    kernel_size=(3, 4),
    dilation=(2, 1),
    stride=(1, 2),
    heads=2,
    kv_heads=1,
    head_dim=3,
    value_dim=2,
    extra=2,
)
SMALL_UNFUSED = Problem(name="unfused", shape=(11,), kernel_size=(4,), dilation=2, head_dim=3)


@pytest.mark.parametrize("mode", ["fwd", "rev"])
@pytest.mark.parametrize(
    ("function", "problem"), [(fused, SMALL), (unfused, SMALL_UNFUSED)], ids=["fused", "unfused"]
)
def test_derivatives_against_finite_differences(function, problem, mode, exact_implementation, x64):
    arrays = problem.arrays(dtype=jnp.float64)
    check_grads(
        jax.jit(function(problem, exact_implementation)),
        (arrays,),
        order=2,
        modes=[mode],
        rtol=1e-6,
    )


@pytest.mark.parametrize("function", [fused, unfused])
def test_forward_mode_is_the_transpose_of_reverse_mode(function, exact_implementation, x64):
    problem = SMALL_UNFUSED
    arrays, tangents = problem.arrays(0, jnp.float64), problem.arrays(1, jnp.float64)
    outputs, pushed = jax.jvp(function(problem, exact_implementation), (arrays,), (tangents,))
    cotangents = jax.tree.map(jnp.sin, outputs)
    pulled = jax.vjp(function(problem, exact_implementation), arrays)[1](cotangents)[0]

    def dot(a, b):
        return sum(jnp.vdot(x, y) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))

    np.testing.assert_allclose(dot(cotangents, pushed), dot(pulled, tangents), rtol=1e-12)


@pytest.mark.oldest
@pytest.mark.parametrize("function", [fused, unfused])
def test_nested_vmap(function, implementation):
    problem = SMALL_UNFUSED
    run = function(problem, implementation)
    stacked = [[problem.arrays(2 * i + j) for j in range(2)] for i in range(3)]
    rows = [jax.tree.map(lambda *x: jnp.stack(x), *row) for row in stacked]
    batched = jax.vmap(jax.vmap(run))(jax.tree.map(lambda *x: jnp.stack(x), *rows))
    for i in range(3):
        for j in range(2):
            for x, y in zip(batched, run(stacked[i][j]), strict=True):
                np.testing.assert_allclose(x[i, j], y, rtol=1e-5, atol=1e-6)


def test_vmap_over_the_bias_alone(implementation):
    problem = problems.Problem(name="bias", shape=(9, 8), kernel_size=(3, 3), heads=2)
    arrays = problem.arrays()
    biases = jnp.stack([problem.arrays(seed)["rpb"] for seed in range(3)])
    run = fused(problem, implementation)
    out, _ = jax.vmap(lambda rpb: run(arrays | {"rpb": rpb}))(biases)
    for i in range(3):
        expected, _ = run(arrays | {"rpb": biases[i]})
        np.testing.assert_allclose(out[i], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("function", [fused, unfused])
def test_remat_changes_nothing(function, implementation):
    run = function(SMALL_UNFUSED, implementation)
    arrays = SMALL_UNFUSED.arrays()
    expected = value_and_gradients(run, arrays)
    actual = value_and_gradients(jax.checkpoint(run), arrays)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), actual, expected)


@pytest.mark.parametrize("function", [fused, unfused])
def test_two_runs_are_bitwise_equal(function, implementation):
    problem = problems.Problem(name="2d", shape=(20, 18), kernel_size=(5, 5), batch=2, heads=2)
    run, arrays = function(problem, implementation), problem.arrays()
    first, second = (value_and_gradients(run, arrays) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.mark.oldest
def test_export_and_reload(implementation):
    if implementation == "jax_triton":
        pytest.skip("interpreted by a callback to Python; test_jax_triton.py exports for a GPU")
    problem = problems.Problem(name="2d", shape=(12, 10), kernel_size=(5, 3))
    arrays = problem.arrays()
    run = jax.jit(fused(problem, implementation))
    # JAX promises nothing for programs with kernels for GPUs, but reads its own.
    check = jax.export.DisabledSafetyCheck.custom_call("__gpu$xla.gpu.triton")
    blob = jax.export.export(run, disabled_checks=[check])(arrays).serialize()
    for x, y in zip(jax.export.deserialize(blob).call(arrays), run(arrays), strict=True):
        np.testing.assert_array_equal(x, y)


def test_empty_batch_gives_empty_results(implementation):
    arrays = {k: v[:0] if k != "rpb" else v for k, v in edges.EDGES[0].arrays().items()}
    out, lse = fused(edges.EDGES[0], implementation)(arrays)
    assert out.shape[0] == lse.shape[0] == 0


@pytest.mark.oldest
@pytest.mark.optimised
@pytest.mark.parametrize("function", [fused, unfused])
def test_sharded_over_batch_and_heads_without_moving_tokens(function, on_cpu_mesh, mesh_of):
    """Data stays where it is: no collective but the sum of the bias gradient over the batch."""
    implementation = on_cpu_mesh
    mesh = mesh_of((4, 2), ("data", "model"), AxisType.Auto)
    problem = problems.Problem(
        name="2d", shape=(24, 22), kernel_size=(5, 7), batch=8, heads=4, head_dim=8
    )
    arrays = problem.arrays()
    specs = {name: P("data", None, None, "model", None) for name in ("query", "key", "value")}
    shardings = {k: NamedSharding(mesh, v) for k, v in (specs | {"rpb": P("model")}).items()}
    run = function(problem, implementation)

    @functools.partial(jax.jit, in_shardings=(shardings,))
    def step(arrays):
        outputs, pull = jax.vjp(run, arrays)
        return outputs, pull(jax.tree.map(jnp.cos, outputs))[0]

    placed = jax.device_put(arrays, shardings)
    # Only kernels for TPUs have to be told.
    with natjax.sharding.split(batch="data", heads="model"):
        compiled = step.lower(placed).compile()
    text = compiled.as_text()
    for collective in ("all-gather", "all-to-all", "collective-permute", "reduce-scatter"):
        assert f" {collective}" not in text, collective
    outputs, gradients = compiled(placed)
    assert outputs[0].sharding.is_equivalent_to(shardings["query"], outputs[0].ndim)
    expected = jax.jit(lambda arrays: jax.vjp(run, arrays)[0])(arrays)
    np.testing.assert_allclose(outputs[0], expected[0], rtol=1e-5, atol=1e-6)
    assert gradients["rpb"].shape == arrays["rpb"].shape


SPLIT = problems.Problem(
    name="split", shape=(6, 5), kernel_size=(3, 3), batch=4, heads=4, kv_heads=2, head_dim=8
)
SPECS = {name: P("data", None, None, "model") for name in ("query", "key", "value")}
SPECS["rpb"] = P("model")


KINDS = (AxisType.Explicit, AxisType.Auto, AxisType.Manual)


@pytest.mark.oldest
@pytest.mark.parametrize(
    ("kind", "in_context", "function"),
    [
        pytest.param(
            kind,
            in_context,
            function,
            id=f"{kind.name}-{'set_mesh' if in_context else 'alone'}-{function.__name__}",
            # Each kind once, and what has failed most.
            marks=[]
            if (function is fused) == (kind != AxisType.Manual)
            and in_context == (kind != AxisType.Auto)
            else [pytest.mark.slow],
        )
        for kind in KINDS
        for in_context in (True, False)
        for function in (fused, unfused)
    ],
)
def test_every_kind_of_mesh_axes(function, in_context, kind, on_cpu_mesh, mesh_of):
    """Forward and backward, sharded over batch and heads; results are typed as the query is."""
    implementation = on_cpu_mesh
    run, arrays = function(SPLIT, implementation), SPLIT.arrays()
    mesh = mesh_of((4, 2), ("data", "model"), AxisType.Auto if kind == AxisType.Manual else kind)
    if kind == AxisType.Manual:
        # Pallas' interpreter does not keep track of what varies.
        check = implementation not in KERNELS
        out_specs = (SPECS["query"],) * 2
        mapped = jax.shard_map(
            run, mesh=mesh, in_specs=(SPECS,), out_specs=out_specs, check_vma=check
        )
    else:
        mapped = run

    def loss(arrays):
        return sum(jnp.sum(x**2) for x in run(arrays))

    def sharded_loss(arrays):
        return sum(jnp.sum(x**2) for x in mapped(arrays))

    expected = run(arrays), jax.grad(loss)(arrays)
    with jax.set_mesh(mesh) if in_context else contextlib.nullcontext():
        placed = {k: jax.device_put(x, NamedSharding(mesh, SPECS[k])) for k, x in arrays.items()}
        actual = jax.jit(mapped)(placed), jax.jit(jax.grad(sharded_loss))(placed)
        if kind == AxisType.Explicit:
            spec = jax.typeof(placed["query"]).sharding.spec
            for x in actual[0]:
                assert jax.typeof(x).sharding.spec[: x.ndim][:4] == spec[:4]
            for name, x in actual[1].items():
                assert jax.typeof(x).sharding.spec == jax.typeof(placed[name]).sharding.spec
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4)


@pytest.mark.oldest
@pytest.mark.parametrize("batch", [8, 6, 3, 0])
def test_knowing_the_mesh_changes_nothing(batch, on_cpu_mesh, mesh_of):
    implementation = on_cpu_mesh
    problem = problems.Problem(
        name="1d", shape=(13,), kernel_size=(5,), batch=max(batch, 1), heads=2, extra=2
    )
    arrays = problem.arrays()
    arrays = {k: v if k == "rpb" else v[:batch] for k, v in arrays.items()}
    run = jax.jit(functools.partial(value_and_gradients, fused(problem, implementation)))
    expected = run(arrays)
    with jax.set_mesh(mesh_of((4, 2), ("data", "fsdp"), AxisType.Auto)):
        actual = run(arrays)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), actual, expected
    )


@pytest.mark.oldest
@pytest.mark.optimised
@pytest.mark.parametrize("function", [fused, unfused])
def test_xla_sums_the_bias_gradient_over_devices_once(function, monkeypatch, mesh_of):
    """Not in every turn of a loop, and no more of it than there is."""
    tilings = "natjax.kernels.backends.xla.fused.TILINGS"
    monkeypatch.setattr(tilings, {"cpu": Tiling(64, 2**15, 8)})
    problem = problems.Problem(
        name="2d", shape=(24, 22), kernel_size=(5, 7), batch=8, heads=2, head_dim=8
    )
    arrays = problem.arrays()
    mesh = mesh_of((4, 2), ("data", "fsdp"), AxisType.Auto)
    specs = {name: P(("data", "fsdp")) if name != "rpb" else P() for name in arrays}
    shardings = {name: NamedSharding(mesh, spec) for name, spec in specs.items()}

    @functools.partial(jax.jit, in_shardings=(shardings,))
    def step(arrays):
        outputs, pull = jax.vjp(function(problem, "xla"), arrays)
        return pull(jax.tree.map(jnp.cos, outputs))[0]

    with jax.set_mesh(mesh):
        compiled = step.lower(arrays).compile()
    text = compiled.as_text()
    assert re.search(r" while\(", text)
    sums = re.findall(r"= \w+\[([\d,]*)\]\S* all-reduce\(", text)
    assert [tuple(map(int, dims.split(","))) for dims in sums] == [arrays["rpb"].shape]
    np.testing.assert_allclose(
        compiled(jax.device_put(arrays, shardings))["rpb"],
        jax.jit(lambda arrays: step.__wrapped__(arrays))(arrays)["rpb"],
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.oldest
def test_inside_shard_map(on_cpu_mesh, mesh_of):
    implementation = on_cpu_mesh
    mesh = mesh_of((4, 2), ("data", "model"), AxisType.Auto)
    problem = problems.Problem(name="1d", shape=(30,), kernel_size=(7,), batch=4, heads=2)
    arrays = problem.arrays()
    run = fused(problem, implementation)
    specs = {name: P("data", None, "model") for name in ("query", "key", "value")}
    specs["rpb"] = P("model")
    out_specs = (P("data", None, "model"),) * 2

    def sharded(**kwargs):
        # One argument varies over fewer devices than the others: its gradient is a sum over them.
        return jax.shard_map(run, mesh=mesh, in_specs=(specs,), out_specs=out_specs, **kwargs)

    def gradient(arrays):
        return jax.grad(lambda arrays: sharded()(arrays)[0].sum())(arrays)

    shapes = jax.eval_shape(gradient, arrays)
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, arrays)
    # Pallas' interpreter does not keep track of what varies.
    actual = jax.jit(sharded(check_vma=implementation not in KERNELS))(arrays)
    for x, y in zip(actual, run(arrays), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


@pytest.mark.optimised
@pytest.mark.parametrize("function", [fused, unfused])
def test_xla_has_no_scatter_and_no_k_fold_copy(function):
    problem = problems.Problem(
        name="2d", shape=(56, 56), kernel_size=(7, 7), batch=8, heads=2, head_dim=32
    )
    arrays = problem.arrays()

    @jax.jit
    def step(arrays):
        outputs, pull = jax.vjp(function(problem, "xla"), arrays)
        return pull(outputs)[0]

    compiled = step.lower(arrays).compile()
    assert " scatter(" not in compiled.as_text()
    k_fold = arrays["key"].nbytes * 49
    limit = k_fold if function is fused else 2 * k_fold
    # Unfused stores the K weights themselves, which are 1/32 of a K-fold copy each time.
    assert compiled.memory_analysis().temp_size_in_bytes < limit / 3


@pytest.mark.optimised
def test_xla_needs_no_more_memory_for_a_large_window():
    """Slabs of this window hold 5 times the keys of a tile along each axis; none is stored.

    Backward needs the output, which is as large as one input.
    """
    problem = problems.Problem(
        name="3d", shape=(30, 48, 80), kernel_size=(18, 24, 24), heads=2, head_dim=64, rpb=False
    )
    structs = problem.structs()
    run = fused(problem, "xla")
    forward = jax.jit(run).lower(structs).compile()
    backward = jax.jit(lambda x, ct: jax.vjp(run, x)[1](ct)).lower(
        structs, jax.eval_shape(run, structs)
    )
    one = math.prod(structs["query"].shape) * 4
    assert forward.memory_analysis().temp_size_in_bytes < 1 * one
    assert backward.compile().memory_analysis().temp_size_in_bytes < 2.5 * one


def test_xla_computes_what_tables_would_be_too_large_for(monkeypatch, x64):
    """Masks and biases of each tile, where tiles are many, small and ragged."""
    monkeypatch.setattr("natjax.kernels.backends.xla.penalty._LARGEST_TABLE", 0)
    monkeypatch.setattr("natjax.kernels.backends.xla.fused._LARGEST_TILE", 0)
    monkeypatch.setattr("natjax.kernels.backends.xla.fused._ALWAYS_A_TILE", 90)
    problem = problems.Problem(
        name="no-table", shape=(11, 10), kernel_size=(3, 5), dilation=(2, 1), heads=2, extra=1
    )
    arrays = problem.arrays(dtype=jnp.float64)
    expected = value_and_gradients(fused(problem, "reference"), arrays)
    assert_close(value_and_gradients(fused(problem, "xla"), arrays), expected, "float64")


def test_lse_gradient_is_honoured(implementation):
    arrays = edges.EDGES[0].arrays()
    run = fused(edges.EDGES[0], implementation)
    gradient = jax.grad(lambda q: run(arrays | {"query": q})[1].sum())(arrays["query"])
    assert np.abs(gradient).max() > 0.01


def test_dilation_equals_separate_problems_on_interleaved_grids(implementation):
    rng = np.random.default_rng(0)
    q, k, v = jnp.asarray(rng.standard_normal((3, 1, 13, 11, 2, 4)), jnp.float32)
    kwargs = {"kernel_size": 3, "implementation": implementation}
    whole = natjax.na2d(q, k, v, dilation=(2, 3), **kwargs)
    for i in range(2):
        for j in range(3):
            part = (slice(None), slice(i, None, 2), slice(j, None, 3))
            expected = natjax.na2d(q[part], k[part], v[part], **kwargs)
            np.testing.assert_allclose(whole[part], expected, rtol=1e-5, atol=1e-6)


def test_constant_values_come_back_unchanged(implementation):
    """Weights sum to one."""
    problem = edges.EDGES[10]
    arrays = problem.arrays() | {"value": jnp.full(problem.arrays()["value"].shape, 3.0)}
    out, _ = fused(problem, implementation)(arrays)
    np.testing.assert_allclose(out, 3.0, rtol=1e-6)


def test_interior_is_translation_equivariant(implementation):
    rng = np.random.default_rng(0)
    q, k, v = jnp.asarray(rng.standard_normal((3, 1, 40, 1, 8)), jnp.float32)
    kwargs = {"kernel_size": 5, "implementation": implementation}
    out = natjax.na1d(q, k, v, **kwargs)
    moved = natjax.na1d(*(jnp.roll(x, 7, axis=1) for x in (q, k, v)), **kwargs)
    np.testing.assert_allclose(moved[:, 9:36], out[:, 2:29], rtol=1e-5, atol=1e-6)


def test_huge_logits_do_not_overflow(implementation):
    problem = edges.EDGES[0]
    arrays = problem.arrays()
    arrays["query"] *= 1e4
    outputs, gradients = value_and_gradients(fused(problem, implementation), arrays)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((outputs, gradients)))
