"""Settings of the kernels for GPUs: their rules, and the rule of thumb."""

import re

import pytest

from natjax.kernels import checks
from natjax.kernels.backends.triton_common import config
from natjax.kernels.backends.triton_common.config import KernelConfig
from natjax.kernels.plan.reach import num_blocks
from natjax.kernels.spec import KERNELS, CallSpec, blocks_of

SPEC = CallSpec(checks.neighborhood((14, 14), 7), 32, 32, "bfloat16", True)
ONE = KernelConfig((4, 4), (4, 4))


@pytest.mark.parametrize("name", ["tile", "chunk"])
@pytest.mark.parametrize(
    "sides",
    [
        (),
        (2, 2, 2, 2),
        (12,),
        (4, 2),
        (8192,),
        (16, 0),
        (16, -1),
        (16.0,),
        (True, 16),
        [16],
        "16",
        16,
    ],
    ids=str,
)
def test_sides_are_powers_of_two(name, sides, unchecked):
    rule = f"{name} must have 1 to 3 sides, powers of two whose product is from 16 to 4096"
    with pytest.raises(ValueError, match=re.escape(f"{rule}; got {sides!r}")):
        KernelConfig(**{"tile": (16,), "chunk": (16,), name: sides})


def test_tile_and_chunk_have_as_many_sides():
    with pytest.raises(ValueError, match=r"one side an axis each; got \(16,\) and \(4, 4\)"):
        KernelConfig((16,), (4, 4))


@pytest.mark.parametrize("value", [0, 3, 32, -1, 4.0, True, "4", None])
def test_num_warps(value, unchecked):
    message = re.escape(f"num_warps must be 1, 2, 4, 8 or 16; got {value!r}")
    with pytest.raises(ValueError, match=message):
        KernelConfig((16,), (16,), num_warps=value)


@pytest.mark.parametrize("value", [0, 9, -1, 2.0, True, "2", None])
def test_num_stages(value, unchecked):
    message = re.escape(f"num_stages must be from 1 to 8; got {value!r}")
    with pytest.raises(ValueError, match=message):
        KernelConfig((16,), (16,), num_stages=value)


def test_sides_fit_the_neighborhood():
    message = r"one side for each of 2 token axes; got \(16,\) and \(16,\)"
    with pytest.raises(ValueError, match=message):
        blocks_of("forward", KernelConfig((16,), (16,)), SPEC.neighborhood)


@pytest.mark.parametrize("kernel", KERNELS)
def test_rows_are_what_a_kernel_has_a_result_for(kernel):
    rows = {axis.rows for axis in blocks_of(kernel, ONE, SPEC.neighborhood).axes}
    assert rows == ({"keys"} if kernel in ("dkeyvalue", "av_transposed") else {"queries"})


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    ("shape", "dtype"), [((5,), "float32"), ((14, 14), "bfloat16"), ((3, 4, 9), "float16")]
)
def test_suggestions_are_candidates(kernel, shape, dtype):
    for head_dim in (8, 64, 256):
        neighborhood = checks.neighborhood(shape, 3)
        spec = CallSpec(neighborhood, head_dim, head_dim, dtype, False)
        suggested = KernelConfig.suggest(kernel, spec)
        assert suggested in config.blocks_within(kernel, spec)
        assert blocks_of(kernel, suggested, neighborhood).num_tiles > 0


@pytest.mark.parametrize("kernel", ["forward", "dkeyvalue"])
@pytest.mark.parametrize(
    "arguments",
    [((64, 64), 31), ((9, 14, 20), (3, 7, 5), (1, 2, 1), (1, 2, 3), (True, False, False))],
    ids=["2d", "3d"],
)
def test_the_cost_is_of_the_blocks_that_there_are(kernel, arguments):
    neighborhood = checks.neighborhood(*arguments)
    spec = CallSpec(neighborhood, 32, 32, "bfloat16", False)
    options = config.blocks_within(kernel, spec, (32, 32))[::17]
    assert len(options) >= 8
    for option in options:
        blocks = blocks_of(kernel, option, neighborhood)
        whole = blocks.num_tiles * blocks.num_chunks
        counts = config._counts(kernel, spec, [option.tile], [option.chunk])
        assert counts.ravel().tolist() == [blocks.num_tiles, whole, num_blocks(blocks)]


@pytest.mark.parametrize(
    ("shape", "kernel_size", "forward", "backward"),
    [
        ((256, 256), (80, 80), 1.25, 1.2),
        ((64, 64), (31, 31), 1.55, 1.45),
        ((30, 48, 80), (18, 24, 24), 1.6, 1.5),
    ],
)
def test_blocks_of_large_windows_hold_little_that_is_not_seen(
    shape, kernel_size, forward, backward
):
    """Of 128 by 64 entries; fewer in the backward pass."""
    neighborhood = checks.neighborhood(shape, kernel_size)
    spec = CallSpec(neighborhood, 128, 128, "bfloat16", False)
    useful = neighborhood.num_tokens * neighborhood.num_neighbors
    for kernel in ("forward", "dquery", "dkeyvalue"):
        blocks = blocks_of(kernel, KernelConfig.suggest(kernel, spec), neighborhood)
        assert config.skips_chunks(blocks)
        computed = num_blocks(blocks) * blocks.num_rows * blocks.num_columns
        assert computed / useful < (forward if kernel == "forward" else backward)


def test_candidates_keep_to_the_largest_block():
    chosen = config.blocks_within("forward", SPEC, most=(32, 16))
    blocks = [blocks_of("forward", x, SPEC.neighborhood) for x in chosen]
    assert {b.num_rows for b in blocks} == {16, 32}
    assert {b.num_columns for b in blocks} == {16}
