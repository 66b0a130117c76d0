"""What is particular to the kernels in Triton's language: what they repeat, memory, compiling."""

import dataclasses
import functools
import importlib
import importlib.util
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from calls import assert_close, fused, unfused, value_and_gradients
from jax.sharding import (
    AbstractDevice,
    AbstractMesh,
    AxisType,
    SingleDeviceSharding,
    use_abstract_mesh,
)

import natjax
from natjax.kernels import checks, specialise
from natjax.kernels.backends.jax_triton import candidates, statics, support
from natjax.kernels.backends.jax_triton.config import KernelConfig
from natjax.kernels.neighborhood import window_start
from natjax.kernels.plan.blocks import Blocks
from natjax.kernels.plan.reach import num_blocks, reach_of
from natjax.kernels.spec import KERNELS, CallSpec, blocks_of
from natjax.kernels.tuning import problems, settings
from natjax.kernels.tuning.problems import Problem

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("jax_triton") is None, reason="jax-triton is not installed"
)


@pytest.fixture(autouse=True)
def _interpreted(interpreted):
    pass


def run(problem, arrays, implementation, function=fused):
    return value_and_gradients(function(problem, implementation), arrays)


# Few programs, of which the interpreter takes a good deal of time each.
LARGE = dict.fromkeys(KERNELS, KernelConfig((4, 16), (4, 16), num_warps=1))
SMALL = Problem(
    name="small",
    shape=(6, 11),
    kernel_size=(3, 4),
    dilation=(1, 2),
    is_causal=(True, False),
    heads=2,
    kv_heads=1,
    head_dim=8,
    value_dim=12,
)


@pytest.mark.oldest
@pytest.mark.parametrize("function", [fused, unfused])
def test_agrees_with_the_reference(function):
    arrays = SMALL.arrays()
    with settings.using(LARGE):
        actual = run(SMALL, arrays, "jax_triton", function)
    assert_close(actual, run(SMALL, arrays, "reference", function))


# So many warps that a thread has room for all of a slab.
AT_ONCE = dict.fromkeys(KERNELS, KernelConfig((2, 8), (2, 8), num_warps=16))


@pytest.mark.parametrize("shares", [1, 512])
def test_a_slab_may_be_in_registers_at_once(shares, monkeypatch):
    """One softmax, and the gradient of the bias summed with that of queries.

    Programs then share out images, here three and two, and tiles.
    """
    monkeypatch.setattr("natjax.kernels.plan.shares._SHARES", shares)
    # The package has a function of the module's name.
    module = importlib.import_module("natjax.kernels.backends.jax_triton.launch")
    monkeypatch.setattr(module, "_LEAST_IMAGES", 2)
    problem = dataclasses.replace(SMALL, batch=5)
    arrays = problem.arrays()
    with settings.using(AT_ONCE), settings.watching() as seen:
        actual = run(problem, arrays, "jax_triton")
    assert {x.kernel for x in seen} == {"forward", "dquery", "dkeyvalue"}
    assert all(x.config.holds_slab(x.kernel, x.spec) for x in seen if x.kernel != "dkeyvalue")
    assert_close(actual, run(problem, arrays, "reference"))


def test_wide_heads_have_a_loop_of_rounds_that_ptxas_does_not_know():
    """As many as there are chunks in a slab, whatever is met of the first."""
    problem = Problem(name="wide", shape=(40,), kernel_size=(7,), head_dim=128)
    arrays = problem.arrays()
    config = KernelConfig((16,), (16,), num_warps=1)
    blocks = blocks_of("dkeyvalue", config, problem.neighborhood)
    assert blocks.num_chunks > 1
    with settings.using(dict.fromkeys(KERNELS, config)):
        actual = run(problem, arrays, "jax_triton")
    assert_close(actual, run(problem, arrays, "reference"))


def test_without_a_bias_a_slab_may_be_in_registers_at_once():
    problem = Problem(name="2d", shape=(9, 8), kernel_size=(5, 3), head_dim=16, rpb=False)
    arrays = problem.arrays()
    with settings.using(AT_ONCE):
        actual = run(problem, arrays, "jax_triton")
    assert_close(actual, run(problem, arrays, "reference"))


def test_the_gradient_of_a_bias_is_summed_with_that_of_queries_where_registers_allow():
    """In all layers of NAT and DiNAT; not in float32, of wide heads and of large windows."""
    for problem in (*problems.NAT_TINY, *problems.DINAT_TINY):
        chosen = suggested("dquery", problem.neighborhood, 32)
        assert chosen.sums_bias(CallSpec(problem.neighborhood, 32, 32, "bfloat16", True))
    small, large = problems.NAT_TINY[0].neighborhood, checks.neighborhood((64, 64), 31)
    for neighborhood, width, dtype in (
        (small, 32, "float32"),
        (small, 128, "bfloat16"),
        (large, 32, "bfloat16"),
    ):
        spec = CallSpec(neighborhood, width, width, dtype, True)
        assert not KernelConfig.suggest("dquery", spec).sums_bias(spec)


def suggested(kernel, neighborhood, width, has_bias=True):
    return KernelConfig.suggest(kernel, CallSpec(neighborhood, width, width, "bfloat16", has_bias))


def test_a_computed_mask_is_as_good_as_a_table(monkeypatch):
    """As for windows too large for a table."""
    arrays = {k: v for k, v in SMALL.arrays().items() if k != "rpb"}
    monkeypatch.setattr(specialise, "_SMALL_TABLE", 0)
    with settings.using(LARGE):
        actual = run(SMALL, arrays, "jax_triton")
    assert_close(actual, run(SMALL, arrays, "reference"))


def test_chunks_that_are_seen_whole_need_no_mask(monkeypatch):
    """Most of those of large windows, and none of the others."""
    monkeypatch.setattr(specialise, "_SMALL_TABLE", 0)
    problem = Problem(name="large", shape=(90,), kernel_size=(50,), head_dim=16, rpb=False)
    arrays = problem.arrays()
    config = KernelConfig((16,), (16,), num_warps=1)
    with settings.using(dict.fromkeys(KERNELS, config)):
        actual = run(problem, arrays, "jax_triton")
    assert_close(actual, run(problem, arrays, "reference"))


@pytest.mark.parametrize(
    ("problem", "blocks"),
    [
        (Problem(name="1d", shape=(70,), kernel_size=(9,), head_dim=16), ((32,), (16,))),
        # From row to row and from frame to frame, and over again for the second head.
        pytest.param(
            Problem(
                name="3d", shape=(4, 7, 8), kernel_size=(2, 5, 3), heads=2, kv_heads=1, head_dim=16
            ),
            ((2, 4, 8), (1, 4, 4)),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["1d", "3d"],
)
@pytest.mark.parametrize("skips", [True, False])
def test_chunks_that_a_tile_does_not_meet_may_be_skipped(skips, problem, blocks, monkeypatch):
    monkeypatch.setattr(statics, "skips_chunks", lambda _: skips)
    arrays = problem.arrays()
    config = KernelConfig(*blocks, num_warps=1)
    for kernel in KERNELS:
        plan = blocks_of(kernel, config, problem.neighborhood)
        assert num_blocks(plan) < plan.num_tiles * plan.num_chunks
    with settings.using(dict.fromkeys(KERNELS, config)):
        actual = run(problem, arrays, "jax_triton")
    assert_close(actual, run(problem, arrays, "reference"))


@pytest.mark.parametrize(
    ("setting", "bounds"), [(None, (0, 1e-6)), ("highest", (0, 1e-6)), ("high", (1e-4, 1e-2))]
)
def test_float32_products_are_as_accurate_as_asked(setting, bounds, x64):
    """The interpreter rounds to TF32 as tensor cores do."""
    problem = Problem(name="precise", shape=(19,), kernel_size=(7,), head_dim=32)
    arrays = problem.arrays()
    exact, _ = fused(problem, "reference")({k: v.astype("float64") for k, v in arrays.items()})
    config = KernelConfig((16,), (16,), num_warps=1)
    with settings.using(dict.fromkeys(KERNELS, config)), jax.default_matmul_precision(setting):
        out, _ = fused(problem, "jax_triton")(arrays)
    error = np.abs(np.asarray(out, np.float64) - exact).max() / np.abs(exact).max()
    assert bounds[0] <= error <= bounds[1]


def test_bfloat16_is_multiplied_as_numbers():
    """Triton's own interpreter multiplies the bits, without a word."""
    problem = Problem(name="low", shape=(9,), kernel_size=(3,), head_dim=16)
    arrays = problem.arrays(dtype=jnp.bfloat16)
    out, _ = fused(problem, "jax_triton")(arrays)
    exact, _ = fused(problem, "reference")({k: v.astype("float32") for k, v in arrays.items()})
    np.testing.assert_allclose(out.astype("float32"), exact, atol=2e-2)


@pytest.mark.parametrize("num_warps", [1, 16], ids=["by chunks", "at once"])
def test_a_nan_key_stays_with_those_who_see_it(num_warps):
    problem = Problem(name="nan", shape=(20,), kernel_size=(3,), head_dim=16)
    arrays = problem.arrays()
    broken = arrays | {"key": arrays["key"].at[0, 6].set(jnp.nan)}
    config = KernelConfig((16,), (16,), num_warps=num_warps)
    with settings.using(dict.fromkeys(KERNELS, config)):
        out, whole = (fused(problem, "jax_triton")(x)[0] for x in (broken, arrays))
    assert np.isnan(out[0, 5:8]).all()
    np.testing.assert_array_equal(
        np.delete(out[0], [5, 6, 7], 0), np.delete(whole[0], [5, 6, 7], 0)
    )


def interpret(kernel, outputs, *arrays, **constants):
    from natjax.kernels.backends.jax_triton import interpreter

    return interpreter.call(kernel, 1, [*map(jnp.asarray, arrays)], outputs, **constants)


WINDOWS = [
    (23, 5, 1, 1, False),
    (23, 4, 3, 2, False),
    (24, 6, 6, 4, True),
    (17, 17, 1, 1, False),
    (29, 7, 2, 3, True),
    (9, 1, 1, 5, False),
]


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("rows", ["queries", "keys"])
def test_what_kernels_repeat_of_the_plan_is_the_same(window, rows):
    """`locate` for every tile, `window_start` for every query."""
    from program_probe import located, started

    length, kernel_size, stride, dilation, is_causal = window
    neighborhood = checks.neighborhood(
        (length,), kernel_size, stride=stride, dilation=dilation, is_causal=is_causal
    )
    (axis,) = Blocks.of(neighborhood, rows, (4,), (4,)).axes
    tiles = np.arange(axis.num_tiles, dtype=np.int32)
    shape = jax.ShapeDtypeStruct(tiles.shape, jnp.int32)
    actual = interpret(located, (shape,) * 3, tiles, axis=statics.Axis.of(axis), n=len(tiles))
    for x, y in zip(actual, axis.locate(tiles), strict=True):
        np.testing.assert_array_equal(x, y)
    query = np.arange(length, dtype=np.int32)
    group = query % dilation
    lengths = axis.window.group_length(group)
    (start,) = interpret(
        started,
        (jax.ShapeDtypeStruct(query.shape, jnp.int32),),
        query // dilation,
        lengths,
        axis=statics.Axis.of(axis),
        n=length,
    )
    shape = {"kernel_size": kernel_size, "stride": stride, "is_causal": is_causal}
    np.testing.assert_array_equal(start, window_start(query // dilation, lengths, **shape))


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_a_loop_goes_through_the_chunks_that_a_tile_meets(ndim):
    """From one to the next along all axes, and over again."""
    from program_probe import walked

    neighborhood = checks.neighborhood((14, 13, 12)[-ndim:], (5, 3, 4)[-ndim:])
    blocks = Blocks.of(neighborhood, "keys", (4,) * ndim, (2,) * ndim, whole_chunks=True)
    missing = Blocks.of(checks.neighborhood((1,) * 3, 1), "keys", (1,) * 3, (1,) * 3)
    t, h, w = map(statics.Axis.of, (*missing.axes[ndim:], *blocks.axes))
    constants = types.SimpleNamespace(axes=ndim, t=t, h=h, w=w, skips_chunks=True)
    reach = reach_of(blocks)
    assert num_blocks(blocks) < blocks.num_tiles * blocks.num_chunks
    for tile in (0, blocks.num_tiles // 2, blocks.num_tiles - 1):
        number = np.arange(blocks.num_chunks).reshape([x.num_chunks for x in blocks.axes])
        met = number[tuple(slice(x, x + n) for x, n in reach[tile])].ravel()
        shape = jax.ShapeDtypeStruct((2 * len(met),), jnp.int32)
        (actual,) = interpret(walked, (shape,), reach, s=constants, tile=tile, rounds=2 * len(met))
        np.testing.assert_array_equal(actual, np.tile(met, 2))


@pytest.mark.parametrize("shift", [-1, 8])
def test_what_is_written_outside_of_an_array_is_an_error(shift):
    from program_probe import shifted

    x = np.arange(8, dtype=np.float32)
    (same,) = interpret(shifted, (jax.ShapeDtypeStruct((8,), jnp.float32),), x, shift=0)
    np.testing.assert_array_equal(same, x)
    with pytest.raises(Exception, match="a kernel wrote outside of its arrays"):
        jax.block_until_ready(
            interpret(shifted, (jax.ShapeDtypeStruct((8,), jnp.float32),), x, shift=shift)
        )


def test_triton_compiles_after_it_was_interpreted():
    """The interpreter gives back what it replaced of Triton's language."""
    import triton.language as tl

    from natjax.kernels.backends.jax_triton import interpreter

    before = [getattr(tl.core, name) for name in dir(tl.core)]
    with interpreter._interpreting():
        assert tl.core.maximum not in before
    assert [getattr(tl.core, name) for name in dir(tl.core)] == before


H100 = AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=132, platform="gpu")


class NoPlugin:
    """Of JAX's plugin for CUDA what jax-triton asks to make a call of a kernel that it compiled."""

    def __getattr__(self, name):
        if name == "get_compute_capability":  # as where there is no GPU
            raise RuntimeError(name)
        return lambda *_: types.SimpleNamespace(to_proto=lambda *_: b"")


@pytest.fixture
def compile_for_h100(monkeypatch):
    """Makes a program, and the PTX of its kernels; what XLA does with it is benchmarks/aot's."""
    from jax_triton import triton_lib

    written = []
    compile_kernel = triton_lib.TritonFunction._compile_kernel

    def watched(*args):
        result = compile_kernel(*args)
        written.append(result[-1].binary)
        return result

    monkeypatch.setattr(support, "has_plugin", lambda: True)
    monkeypatch.setattr(triton_lib, "triton_kernel_call_lib", NoPlugin())
    monkeypatch.setattr(triton_lib.TritonFunction, "_compile_kernel", watched)
    monkeypatch.delenv("NATJAX_INTERPRET", raising=False)

    def compiled(function, arrays):
        here = SingleDeviceSharding(jax.devices()[0])
        specs = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16, sharding=here), arrays
        )
        check = jax.export.DisabledSafetyCheck.custom_call("triton_kernel_call_ffi")
        with use_abstract_mesh(AbstractMesh((1,), ("x",), abstract_device=H100)):
            exported = jax.export.export(
                jax.jit(function), platforms=["cuda"], disabled_checks=[check]
            )
            return exported(specs).mlir_module(), written

    return compiled


@pytest.mark.oldest
@pytest.mark.parametrize("is_used", [True, False])
def test_a_kernel_that_nobody_uses_is_dropped(is_used):
    """For which JAX 0.12 calls rules that jax-triton has for earlier ones."""
    from jax.interpreters import partial_eval
    from program_probe import shifted

    from natjax.kernels.backends.jax_triton import library

    x = jax.ShapeDtypeStruct((8,), jnp.float32)
    options = {"num_warps": 1, "num_stages": 1, "name": "shifted", "shift": 0}
    program = jax.make_jaxpr(lambda y: library.call(shifted, 1, [y], [x], **options))(x).jaxpr
    kept, arguments = partial_eval.dce_jaxpr(program, [is_used])
    assert len(kept.eqns) == is_used
    assert arguments == [is_used]


@pytest.mark.oldest
def test_compiles_for_a_gpu_that_is_not_there(compile_for_h100):
    """Only the kernels of the gradient that is asked for."""
    op = functools.partial(natjax.na2d, **SMALL.arguments, implementation="jax_triton")

    def gradient_of_queries(arrays):
        def loss(query):
            return op(**(arrays | {"query": query})).astype("float32").sum()

        return jax.grad(loss)(arrays["query"])

    text, written = compile_for_h100(gradient_of_queries, SMALL.arrays())
    assert text.count("@triton_kernel_call_ffi") == len(written) == 2
    for ptx in written:
        # By itself Triton writes for its own assembler, than which XLA's may be older.
        assert ".version 8.8" in ptx
        assert ".target sm_90a" in ptx


def test_interpreted_on_several_devices_is_refused(mesh_of):
    """Rather than crash."""
    x = jnp.zeros((2, 9, 1, 8))
    attend = functools.partial(natjax.na1d, kernel_size=3, implementation="jax_triton")
    with (
        jax.set_mesh(mesh_of((8,), ("data",), AxisType.Auto)),
        pytest.raises(NotImplementedError, match="interpreted on one device"),
    ):
        attend(x, x, x)


def test_a_warp_has_16_rows_at_least_where_registers_allow():
    """Further ones repeat what the others do on tensor cores."""
    neighborhood = checks.neighborhood((256, 256), 80)
    for kernel in ("forward", "dquery", "dkeyvalue"):
        for width in (32, 64, 128):
            spec = CallSpec(neighborhood, width, width, "bfloat16", False)
            chosen = KernelConfig.suggest(kernel, spec)
            assert chosen.num_warps <= math.prod(chosen.tile) // 16
    # Here accumulators alone would fill the registers of so few threads.
    spec = CallSpec(neighborhood, 256, 256, "bfloat16", False)
    chosen = KernelConfig.suggest("dkeyvalue", spec)
    assert chosen.num_warps > math.prod(chosen.tile) // 16


def test_settings_that_are_measured_are_those_that_are_used():
    """A setting that is not of the backend's own class would be passed over."""
    spec = CallSpec(checks.neighborhood((56, 56), 7), 32, 32, "bfloat16", True)
    found = candidates.candidates("forward", spec, 5)
    assert found[0] == KernelConfig.suggest("forward", spec)
    assert len(set(found)) == 5
    every = [*found, *candidates.variants("forward", spec, found[1])]
    assert {type(x) for x in every} == {KernelConfig}


def test_without_jax_triton_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(support, "is_installed", lambda: False)
    x = jnp.zeros((1, 9, 1, 8))
    with pytest.raises(NotImplementedError, match=r"pip install 'natjax\[triton\]'"):
        natjax.na1d(x, x, x, 3, implementation="jax_triton")
    told = natjax.explain(x, x, x, 3)
    assert told.chosen == "pallas_triton"
