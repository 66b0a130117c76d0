"""What is particular to the kernels for Hopper: half precision, lines of tokens, the ring."""

import dataclasses
import functools
import importlib
import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from calls import fused, plain_attention, value_and_gradients

import natjax
from natjax.kernels import checks, device, registry
from natjax.kernels.plan.blocks import Blocks, unravel
from natjax.kernels.spec import KERNELS, CallSpec, kernels_of, rows_of
from natjax.kernels.tuning import search, settings
from natjax.kernels.tuning.problems import DINAT_TINY, NAT_TINY, Problem

pytestmark = pytest.mark.skipif(
    "mosaic_gpu" not in registry.names(), reason="the kernels for Hopper are not there"
)
NEEDS_JAX = pytest.mark.skipif(
    jax.__version_info__ < (0, 12), reason="the kernels need jax 0.12 or later"
)
H100 = types.SimpleNamespace(
    platform="gpu", device_kind="NVIDIA H100 80GB HBM3", compute_capability="9.0"
)


# Numbers.


def assert_errs_little(problem, dtype="bfloat16"):
    """At most twice as much as plain attention in the same dtype, in values and gradients."""
    low = problem.arrays(dtype=dtype)
    exact = {k: v.astype(jnp.float32) for k, v in low.items()}
    truth = value_and_gradients(fused(problem, "reference"), exact)
    plain = value_and_gradients(functools.partial(plain_attention, problem), low)
    actual = value_and_gradients(fused(problem, "mosaic_gpu"), low)
    assert actual[0][0].dtype == dtype
    assert actual[0][1].dtype == jnp.float32
    np.testing.assert_allclose(actual[0][1], truth[0][1], atol=1e-2)
    pairs = {"out": (actual[0][0], plain[0][0], truth[0][0])}
    pairs |= {f"d{k}": (actual[1][k], plain[1][k], truth[1][k]) for k in low}
    for name, (x, y, z) in pairs.items():
        error, allowed = (np.abs(np.asarray(a, np.float32) - z).max() for a in (x, y))
        assert error <= 2 * allowed, (name, error, allowed)


# Ragged tiles, chunks and dilation groups, a mask, shared key heads, one chunk after the other; for
# the fused op and for the others.
EVERYTHING = Problem(
    name="everything",
    shape=(5, 21),
    kernel_size=(2, 4),
    stride=(1, 2),
    dilation=(2, 1),
    is_causal=(True, False),
    heads=2,
    kv_heads=1,
    head_dim=16,
)
# Few copies of lines, which take the interpreter long, and still more chunks than the ring has.
FEW_LINES = ((4, 16), (1, 32))
CASES = {
    "1d-causal": Problem(
        name="1d-causal", shape=(70,), kernel_size=(9,), is_causal=True, head_dim=32
    ),
    "1d-ragged-dilation": Problem(
        name="1d-ragged-dilation", shape=(37,), kernel_size=(3,), dilation=3, heads=2, head_dim=48
    ),
    "2d-two-parts": Problem(name="2d", shape=(19, 23), kernel_size=(7, 7), head_dim=128),
    "2d-slab-is-chunk": Problem(
        name="2d-slab-is-chunk", shape=(17, 18), kernel_size=(7, 7), head_dim=32
    ),
    "2d-window-is-input": Problem(
        name="2d-window-is-input", shape=(7, 7), kernel_size=(7, 7), heads=2, head_dim=32
    ),
    "3d": Problem(
        name="3d", shape=(3, 9, 10), kernel_size=(2, 3, 5), dilation=(1, 3, 2), head_dim=64
    ),
}


@NEEDS_JAX
def test_errs_as_little_as_plain_attention(interpreted, monkeypatch):
    """Blocks of threads work on two images, the last on one, where there is a table that stays.

    Those that sum for the gradient of the bias have several tiles each.
    """
    backend = "natjax.kernels.backends.mosaic_gpu"
    monkeypatch.setattr(f"{backend}.run._LEAST_BLOCKS", 1)
    monkeypatch.setattr(f"{backend}.fused.launch._DBIAS_BLOCKS", 1)
    config = _settings()(*FEW_LINES, num_stages=1)
    several = dataclasses.replace(config, num_stages=2, images=2)
    chosen = {"forward": several, "dquery": several, "dkeyvalue": config, "dbias": config}
    with settings.using(chosen):
        assert_errs_little(dataclasses.replace(EVERYTHING, batch=3))


@NEEDS_JAX
@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("problem", CASES.values(), ids=CASES)
def test_errs_as_little_in_every_layout(problem, dtype, interpreted):
    assert_errs_little(problem, dtype)


# Either warpgroup skips chunks that only the other meets; the axis between them is not always the
# first.
PAIRS = {
    "1d": (
        Problem(name="1d", shape=(200,), kernel_size=(150,), heads=2, kv_heads=1, head_dim=16),
        (128,),
        (64,),
    ),
    "2d": (
        Problem(
            name="2d",
            shape=(16, 24),
            kernel_size=(7, 17),
            is_causal=(True, False),
            head_dim=32,
        ),
        (8, 16),
        (2, 32),
    ),
    "3d": (
        Problem(
            name="3d", shape=(2, 18, 10), kernel_size=(2, 5, 3), dilation=(1, 1, 2), head_dim=16
        ),
        (1, 16, 8),
        (1, 4, 8),
    ),
}


@NEEDS_JAX
@pytest.mark.parametrize(
    "name", ["1d", *(pytest.param(x, marks=pytest.mark.slow) for x in ("2d", "3d"))]
)
def test_two_warpgroups_and_computed_masks(name, interpreted, monkeypatch):
    """As for large windows: no table, chunks that are seen whole, and more than fit the ring."""
    from natjax.kernels import specialise

    monkeypatch.setattr(specialise, "_SMALL_TABLE", 0)
    problem, tile, chunk = PAIRS[name]
    config = _settings()(tile, chunk)
    with settings.using(dict.fromkeys(("forward", "dquery", "dkeyvalue"), config)):
        assert_errs_little(dataclasses.replace(problem, rpb=False))


@NEEDS_JAX
@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("rows", ["queries", "keys"])
def test_each_half_of_a_tile_meets_what_its_rows_see(name, rows):
    """Which is not what the other half sees, or there would be nothing to skip."""
    problem, tile, chunk = PAIRS[name]
    layout = _layout(problem.neighborhood, rows, tile, chunk)
    axis = layout.split_axis
    blocks, found = layout.blocks.axes[axis], layout.reach_of_halves()
    of_axis = blocks.locate(np.arange(blocks.num_tiles))
    grid = np.indices([a.num_tiles for a in layout.blocks.axes])[axis].ravel()
    for number, halves in zip(grid, found, strict=True):
        group, first, start = (int(x[number]) for x in of_axis)
        columns = start + np.arange(blocks.num_chunks * blocks.chunk)
        at = first + np.arange(blocks.tile)
        seen = blocks.is_neighbor(at[:, None], columns[None], group)
        seen &= at[:, None] < blocks.window.group_length(group)
        seen = seen.reshape(2, -1, blocks.num_chunks, blocks.chunk).any(axis=(1, 3))
        for own, (begin, count) in zip(seen, halves, strict=True):
            np.testing.assert_array_equal(np.flatnonzero(own), np.arange(begin, begin + count))
    assert (found[:, 0] != found[:, 1]).any()


@NEEDS_JAX
def test_chunks_are_counted_in_order():
    """Those of one warpgroup follow one another, and all others are passed by."""
    from natjax.kernels.backends.mosaic_gpu.walk import Walk

    first, end = (1, 0, 2), (3, 1, 5)
    walk = Walk(first, end, slabs=2, outermost=2)
    order = [(i, 0, j) for j in range(2, 5) for i in range(1, 3)]
    assert walk.total == 12
    assert int(walk.after(walk.start(), 8).slab) == 1
    steps, passed = [], []

    def step(turn, carry):
        steps.append((int(turn.number), int(turn.slab), tuple(map(int, turn.index))))
        return carry + 1

    with jax.disable_jit():
        count = walk.over(1, step, 0, (3, 4), lambda number: passed.append(int(number)))
        assert (count, steps) == (2, [(6 + i, 1, order[i]) for i in (2, 3)])
        assert passed == [6, 7, 10, 11]
        steps.clear()
        assert walk.over(0, step, 0) == 6
        assert [index for _, _, index in steps] == order
        turn = walk.start()
        for number in range(12):
            assert (int(turn.number), int(turn.slab)) == (number, number // 6)
            assert tuple(map(int, turn.index)) == order[number % 6]
            turn = walk.after(turn)


@NEEDS_JAX
@pytest.mark.slow
def test_devices_with_parts_of_batch_and_heads_have_parts_of_the_results(interpreted):
    """One after the other: the interpreter knows one device. For eight, `make aot` compiles."""
    problem = dataclasses.replace(EVERYTHING, batch=2, heads=4, kv_heads=2)
    arrays = problem.arrays(dtype="bfloat16")

    def part_of(x, i, j):
        half = x.shape[-2] // 2
        return x[i : i + 1, ..., j * half : (j + 1) * half, :]

    def run(arrays):
        out, pull = jax.vjp(lambda x: fused(problem, "mosaic_gpu")(x)[0], arrays)
        return out, pull(jnp.ones_like(out))[0]

    tokens = {name: x for name, x in arrays.items() if name != "rpb"}
    whole = jax.jit(run)(arrays)
    sums = []
    for i, j in itertools.product(range(2), range(2)):
        part = {name: part_of(x, i, j) for name, x in tokens.items()}
        out, gradients = jax.jit(run)(part | {"rpb": arrays["rpb"][2 * j : 2 * j + 2]})
        np.testing.assert_array_equal(out, part_of(whole[0], i, j))
        sums.append(gradients.pop("rpb").astype(jnp.float32))
        for name, x in gradients.items():
            np.testing.assert_array_equal(x, part_of(whole[1][name], i, j))
    total = jnp.concatenate([sums[0] + sums[2], sums[1] + sums[3]])
    np.testing.assert_allclose(total, whole[1]["rpb"].astype(jnp.float32), rtol=0.02, atol=0.05)


def test_blocks_of_threads_stay_where_that_leaves_enough_of_them():
    running = importlib.import_module("natjax.kernels.backends.mosaic_gpu.run")
    # NAT-Tiny's first stage: two heads of 49 tiles.
    for batch, images in ((128, 8), (16, 2), (8, 1), (1, 1)):
        assert running.images_of_a_block(8, batch, 2 * 49) == images
    assert running.images_of_a_block(8, 3, 4096) == 3
    spec = CallSpec(NAT_TINY[0].neighborhood, 32, 32, "bfloat16", True)
    assert _settings().suggest("forward", spec).images == 8
    large = Problem(name="large", shape=(64, 64), kernel_size=(31, 31))
    spec = CallSpec(large.neighborhood, 32, 32, "bfloat16", True)
    assert _settings().suggest("forward", spec).images == 1


# The unfused ops.


def integers(shapes, seed=0):
    """Arrays of whole numbers so small that half precision has all sums of their products."""
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(rng.integers(-1, 2, x.shape), x.dtype) for name, x in shapes.items()}


def exact_half(op, problem, implementation, arrays):
    """The logits or the weighted sums, and their gradients by all arguments."""
    kwargs = {**problem.arguments, "implementation": implementation}
    if op == "qk":
        kwargs["scale"] = 1.0
    run = functools.partial(getattr(natjax, f"na{problem.ndim}d_{op}"), **kwargs)

    @jax.jit
    def differentiated(arrays):
        out, pull = jax.vjp(lambda arrays: run(**arrays), arrays)
        return out, pull(integers({"": out}, seed=1)[""])[0]

    return differentiated(arrays)


def assert_exact(op, problem, dtype="bfloat16"):
    shapes = problem.structs(dtype)
    if op == "qk":
        del shapes["value"]
    else:
        slots = (*shapes["query"].shape[:-1], problem.neighborhood.num_neighbors)
        shapes = {"weights": jax.ShapeDtypeStruct(slots, dtype), "value": shapes["value"]}
    arrays = integers(shapes)
    exact = {name: x.astype(jnp.float32) for name, x in arrays.items()}
    actual = exact_half(op, problem, "mosaic_gpu", arrays)
    expected = exact_half(op, problem, "reference", exact)
    assert {x.dtype for x in jax.tree.leaves(actual)} == {jnp.dtype(dtype)}
    assert all(np.abs(np.nan_to_num(x, neginf=0)).max() > 2 for x in jax.tree.leaves(expected))
    jax.tree.map(
        lambda x, y: np.testing.assert_array_equal(np.asarray(x, np.float32), y), actual, expected
    )


@NEEDS_JAX
@pytest.mark.parametrize("op", ["qk", pytest.param("av", marks=pytest.mark.slow)])
def test_unfused_ops_are_exact_where_numbers_are(op, interpreted):
    """Which takes all kernels for either: the gradients of the one are the other."""
    with settings.using(dict.fromkeys(KERNELS, _settings()(*FEW_LINES))):
        assert_exact(op, EVERYTHING)


@NEEDS_JAX
@pytest.mark.slow
@pytest.mark.parametrize("op", ["qk", "av"])
@pytest.mark.parametrize("problem", CASES.values(), ids=CASES)
def test_unfused_ops_are_exact_in_every_layout(problem, op, interpreted):
    assert_exact(op, problem, dtype="float16" if op == "av" else "bfloat16")


def test_unfused_kernels_have_one_warpgroup_that_multiplies():
    large = Problem(name="large", shape=(64, 64), kernel_size=(31, 31))
    spec = CallSpec(large.neighborhood, 32, 32, "bfloat16", False)
    for kernel in kernels_of("qk", has_bias=False):
        assert _settings().suggest(kernel, spec).warpgroups == 1
    assert _settings().suggest("forward", spec).warpgroups == 2


@NEEDS_JAX
def test_tiles_of_unfused_kernels_that_are_too_large(interpreted):
    x = jax.ShapeDtypeStruct((1, 130, 1, 16), jnp.bfloat16)
    with (
        settings.using({"qk": _settings()((128,), (64,))}),
        pytest.raises(ValueError, match=r'tile of kernel "qk" must have 64 rows; got \(128,\)'),
    ):
        jax.eval_shape(lambda x: natjax.na1d_qk(x, x, 5, implementation="mosaic_gpu"), x)


@NEEDS_JAX
def test_nan_in_a_key_stays_with_those_who_see_it(interpreted):
    problem = Problem(name="nan", shape=(9, 8), kernel_size=(3, 3), head_dim=16)
    arrays = problem.arrays(dtype="bfloat16")
    broken = arrays | {"key": arrays["key"].at[0, 4, 3].set(jnp.nan)}
    seen = problem.neighborhood.dense_mask()[:, 4 * 8 + 3].reshape(9, 8)
    expected, actual = (fused(problem, "mosaic_gpu")(x) for x in (arrays, broken))
    for x, y in zip(actual, expected, strict=True):
        assert np.isnan(np.asarray(x, np.float32)[0, seen]).all()
        np.testing.assert_array_equal(np.asarray(x)[0, ~seen], np.asarray(y)[0, ~seen])
    logits = natjax.na2d_qk(broken["query"], broken["key"], 3, implementation="mosaic_gpu")
    np.testing.assert_array_equal(np.isnan(logits).any(axis=(-1, -2))[0], seen)


# Layouts.


def _settings():
    from natjax.kernels.backends import mosaic_gpu

    return mosaic_gpu.settings


def _layout(neighborhood, rows, tile, chunk):
    from natjax.kernels.backends.mosaic_gpu.layout import Layout

    return Layout.of(Blocks.of(neighborhood, rows, tile, chunk, whole_chunks=True))


LAYOUTS = [
    ((13, 22), (4, 3), (2, 1), "queries", (8, 8), (4, 16)),
    ((13, 22), (4, 3), (2, 3), "keys", (8, 8), (2, 32)),
    ((5, 9, 17), (2, 3, 5), (2, 2, 3), "queries", (2, 4, 8), (2, 4, 8)),
    ((200,), (9,), (3,), "keys", (128,), (64,)),
]


@pytest.mark.parametrize("case", LAYOUTS)
def test_what_is_laid_out_is_found_again(case):
    layout = _layout(checks.neighborhood(*case[:2], 1, case[2], False), *case[3:])
    tokens = layout.blocks.num_tokens
    x = np.random.default_rng(0).standard_normal((2, tokens, 3, 4)).astype(np.float32)
    np.testing.assert_array_equal(layout.tokens(layout.lines(jnp.asarray(x)), 3), x)
    scalars = x[..., 0]
    tiles = layout.by_tile(jnp.asarray(scalars))
    np.testing.assert_array_equal(layout.of_tiles(tiles), scalars)


@pytest.mark.parametrize("case", LAYOUTS)
def test_rows_of_tiles_and_their_windows_are_those_of_the_plan(case):
    layout = _layout(checks.neighborhood(*case[:2], 1, case[2], False), *case[3:])
    tokens = np.arange(layout.blocks.num_tokens, dtype=np.float32)[None, :, None]
    tiles = np.asarray(layout.by_tile(jnp.asarray(tokens)))[0, 0]
    lines = np.asarray(layout.lines(jnp.asarray(tokens[..., None])))
    scalars = np.asarray(layout.scalars(jnp.asarray(tokens)))
    windows, whole = np.asarray(layout.row_windows()), layout.whole_windows()
    axes, places, dilation = layout.blocks.axes, layout.places, layout.dilation
    for number in range(layout.blocks.num_tiles):
        index = unravel(number, [axis.num_tiles for axis in axes])
        located = [axis.locate(np.asarray(i)) for axis, i in zip(axes, index, strict=True)]
        within = unravel(np.arange(layout.blocks.num_rows), layout.tile)
        at = [first + i for (_, first, _), i in zip(located, within, strict=True)]
        groups = [group for group, _, _ in located]
        lengths = [a.window.group_length(g) for a, g in zip(axes, groups, strict=True)]
        exists = np.all([p < n for p, n in zip(at, lengths, strict=True)], axis=0)
        token = 0
        for axis, group, position in zip(axes, groups, at, strict=True):
            w = axis.window
            token = token * w.length + position * w.dilation + group
        line = (at[0] * dilation[0] + groups[0]) * places[1] + at[1]
        line = line * dilation[1] + groups[1]
        token, line, place = token[exists], line[exists], at[2][exists]
        np.testing.assert_array_equal(tiles[number][exists], token)
        np.testing.assert_array_equal(lines[line, place, groups[2]], token)
        row = np.ravel_multi_index(list(map(int, groups)), dilation)
        np.testing.assert_array_equal(scalars[row, *(x[exists] for x in at)], token)
        for i, axis in enumerate(axes):
            own, column = at[i] < lengths[i], np.arange(lengths[i])
            seen = axis.is_neighbor(at[i][:, None], column[None], groups[i])[own]
            low, high = windows[number, i, :, :, None]
            np.testing.assert_array_equal(((low <= column) & (column < high))[own], seen)
            of_all = (whole[number, i, 0] <= column) & (column < whole[number, i, 1])
            np.testing.assert_array_equal(of_all, seen.all(axis=0) & own.any())


# Settings, and what is declined.


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (((4, 8), (4, 16)), r"tile must have .* one of \(64, 128\).*got \(4, 8\)"),
        (((16, 4), (4, 16)), r"tile must have .* the last at least 8; got \(16, 4\)"),
        (((8, 8), (3, 16)), r"chunk must have .* powers of two .* got \(3, 16\)"),
        (((8, 8), (64,)), r"one side an axis each; got \(8, 8\) and \(64,\)"),
        (((8, 8), (4, 16), 0), "num_stages must be from 1 to 8; got 0"),
        (((8, 8), (4, 16), 2, 1), "boxes must be True or False; got 1"),
        (((8, 8), (4, 16), 2, True, 65), "images must be from 1 to 64; got 65"),
        (((8, 8), (4, 16), 2, True, 1, 0), "copies_apart must be True or False; got 0"),
    ],
)
def test_settings_that_break_a_rule(values, message, unchecked):
    with pytest.raises(ValueError, match=message):
        _settings()(*values)


@pytest.mark.parametrize("problem", [*NAT_TINY, *DINAT_TINY, *CASES.values()], ids=str)
def test_suggested_tiles_are_those_of_warpgroups(problem):
    spec = CallSpec(problem.neighborhood, problem.head_dim, problem.head_dim, "bfloat16", True)
    for kernel in kernels_of("attention", has_bias=True):
        config = _settings().suggest(kernel, spec)
        blocks = Blocks.of(problem.neighborhood, rows_of(kernel), config.tile, config.chunk)
        assert blocks.num_rows == 64 * config.warpgroups
    assert set(kernels_of("attention", has_bias=True)) < set(KERNELS)


def test_slabs_of_small_windows_are_one_chunk_where_registers_have_room():
    chunks = {}
    for name, head_dim in itertools.product(("forward", "dquery"), (32, 64)):
        spec = CallSpec(NAT_TINY[0].neighborhood, head_dim, head_dim, "bfloat16", True)
        config = _settings().suggest(name, spec)
        chunks[name, head_dim] = config.chunk, config.num_stages
    assert chunks.pop(("forward", 32)) == ((16, 16), 1)
    assert set(chunks.values()) == {((4, 16), 2)}


def test_who_copies():
    """A warpgroup of its own, unless there is room for two that copy for themselves."""
    for head_dim, apart in ((64, []), (128, ["forward", "dquery", "dbias"])):
        spec = CallSpec(NAT_TINY[0].neighborhood, head_dim, head_dim, "bfloat16", True)
        assert [x for x in KERNELS if _settings().suggest(x, spec).copying] == apart


def _specs():
    for problem in (NAT_TINY[0], Problem(name="large", shape=(64, 64), kernel_size=(31, 31))):
        for head_dim in (32, 128):
            yield CallSpec(problem.neighborhood, head_dim, head_dim, "bfloat16", True)


@NEEDS_JAX
@pytest.mark.parametrize("kernel", KERNELS)
def test_candidates_fit_and_begin_with_what_is_suggested(kernel):
    from natjax.kernels.backends.mosaic_gpu import candidates

    for spec in _specs():
        options = candidates.candidates(kernel, spec, 12)
        assert options[0] == _settings().suggest(kernel, spec)
        assert len(set(options)) == len(options) == 12
        assert all(candidates.fits(kernel, spec, option) for option in options)
        others = candidates.variants(kernel, spec, options[0])
        assert {(x.tile, x.chunk) for x in others} == {(options[0].tile, options[0].chunk)}
        assert options[0] not in others
        # A table of a large window does not fit.
        stays = kernel in ("forward", "dquery") and spec.neighborhood == NAT_TINY[0].neighborhood
        assert (len({x.images for x in others}) > 1) == stays
        assert {x.boxes for x in others} == {True, False}
        assert len({x.copies_apart for x in others}) == 3 - options[0].warpgroups
        if kernel not in ("forward", "dquery", "dkeyvalue", "dbias"):
            assert {x.warpgroups for x in options} == {1}


@NEEDS_JAX
def test_candidates_have_room_for_sums_blocks_and_chunks():
    from natjax.kernels.backends.mosaic_gpu import candidates

    wide = CallSpec(NAT_TINY[0].neighborhood, 128, 128, "bfloat16", True)
    config = _settings()((8, 8), (2, 32))
    assert candidates.fits("dkeyvalue", wide, config)
    # Two sums of 64 registers a thread each, and two blocks of 64.
    assert not candidates.fits("dkeyvalue", wide, dataclasses.replace(config, chunk=(4, 32)))
    # 32 KiB for rows, and as much for each stage.
    assert candidates.fits("dquery", wide, dataclasses.replace(config, num_stages=5))
    assert not candidates.fits("dquery", wide, dataclasses.replace(config, num_stages=6))


@NEEDS_JAX
@pytest.mark.slow
def test_settings_are_measured(interpreted, monkeypatch):
    monkeypatch.setattr(search, "_MOST_RUNS", 1)
    problem = Problem(name="tiny", shape=(20,), kernel_size=(3,), head_dim=16)
    kernels = []
    for result in search.tune([problem], backend="mosaic_gpu", ops=("av",), limit=1, repeats=1):
        assert result.config is not None, result.kernel
        assert result.skipped == {}
        assert result.measured >= 2
        kernels.append(result.kernel)
    assert kernels == ["qk", "av", "av_transposed"]


@NEEDS_JAX
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": jnp.float32}, r"takes the dtypes \('bfloat16', 'float16'\); got float32"),
        ({"head_dim": 24}, "multiples of 16, up to 128; got 24"),
        ({"head_dim": 144}, "multiples of 16, up to 128; got 144"),
        ({"value_dim": 16}, "values as wide as keys; got head sizes of 32 and 16"),
    ],
)
def test_what_is_declined_says_what_would_work(change, message, interpreted):
    head_dim = change.get("head_dim", 32)
    shape = (1, 9, 9, 4)
    x, value = (
        jax.ShapeDtypeStruct((*shape, size), change.get("dtype", jnp.bfloat16))
        for size in (head_dim, change.get("value_dim", head_dim))
    )
    attend = functools.partial(natjax.na2d, kernel_size=3, implementation="mosaic_gpu")
    with pytest.raises(NotImplementedError, match=f'"mosaic_gpu" .*{message}.*; use .*"xla"'):
        jax.eval_shape(attend, x, x, value)


@NEEDS_JAX
@pytest.mark.parametrize(
    "target",
    [
        H100.__dict__ | {"device_kind": "NVIDIA B200", "compute_capability": "10.0"},
        H100.__dict__ | {"device_kind": "NVIDIA A100-SXM4-80GB", "compute_capability": "8.0"},
        {"platform": "gpu", "device_kind": "NVIDIA B200"},
        {"platform": "cpu", "device_kind": "cpu"},
    ],
    ids=lambda x: "-".join(map(str, x.values())),
)
def test_another_chip_is_declined_before_anything_is_compiled(target, monkeypatch):
    """Where Mosaic would end the process."""
    monkeypatch.delenv("NATJAX_INTERPRET", raising=False)
    monkeypatch.setattr(device, "targets", lambda: (types.SimpleNamespace(**target),))
    x = jax.ShapeDtypeStruct((1, 9, 1, 16), jnp.bfloat16)
    with pytest.raises(NotImplementedError, match=f"needs a Hopper GPU.*{target['device_kind']}"):
        jax.eval_shape(lambda x: natjax.na1d(x, x, x, 3, implementation="mosaic_gpu"), x)


@pytest.mark.oldest
def test_an_older_jax_is_declined(monkeypatch, interpreted):
    monkeypatch.setattr(jax, "__version_info__", (0, 11, 2))
    x = jax.ShapeDtypeStruct((1, 9, 1, 16), jnp.bfloat16)
    with pytest.raises(NotImplementedError, match=r"needs jax 0\.12 or later; got .*use"):
        jax.eval_shape(lambda x: natjax.na1d(x, x, x, 3, implementation="mosaic_gpu"), x)


def test_none_passes_over_what_has_never_run(monkeypatch):
    monkeypatch.delenv("NATJAX_INTERPRET", raising=False)
    monkeypatch.setattr(device, "targets", lambda: (H100,))
    x = jax.ShapeDtypeStruct((1, 9, 1, 16), jnp.bfloat16)
    told = natjax.explain(x, x, x, 3)
    assert told.chosen in ("jax_triton", "pallas_triton")
    assert "runs only where it is named" in told.reasons["mosaic_gpu"]
    text = str(jax.make_jaxpr(lambda x: natjax.na1d(x, x, x, 3))(x))
    assert "warpgroup" not in text
    if jax.__version_info__ >= (0, 12):
        assert natjax.explain(x, x, x, 3, implementation="mosaic_gpu").chosen == "mosaic_gpu"
