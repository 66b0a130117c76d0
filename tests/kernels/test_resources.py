"""Estimates of what a kernel takes, against kernels that were compiled."""

import pytest

from natjax.kernels import checks
from natjax.kernels.backends.triton_common import resources
from natjax.kernels.backends.triton_common.config import KernelConfig
from natjax.kernels.spec import CallSpec


def shape_of(head_dim, has_bias, dtype="bfloat16"):
    return CallSpec(checks.neighborhood((56, 56), 7), head_dim, head_dim, dtype, has_bias)


def config(columns=64, warps=4, stages=2):
    return KernelConfig((8, 8), (8, columns // 8), warps, stages)


@pytest.mark.parametrize(
    ("head_dim", "has_bias", "stages", "compiled"),
    [
        (32, False, 2, 20_480),
        (32, True, 2, 36_864),
        (32, True, 3, 61_440),
        (64, True, 2, 57_344),
        (128, True, 2, 98_304),
    ],
)
def test_shared_memory_of_kernels_compiled_for_an_h100(head_dim, has_bias, stages, compiled):
    shape = shape_of(head_dim, has_bias)
    assert resources.shared_memory("forward", shape, config(stages=stages)) == compiled


@pytest.mark.parametrize(
    ("head_dim", "columns", "compiled"), [(32, 64, 96), (64, 64, 214), (128, 64, 248)]
)
def test_registers_are_no_more_than_compiled_kernels_take(head_dim, columns, compiled):
    shape = shape_of(head_dim, True)
    assert resources.registers("forward", shape, config(columns)) <= compiled


def test_what_cannot_fit_is_refused():
    shape = shape_of(64, True)
    assert resources.fits("forward", shape, config(), "9.0")
    # Logits of 64 x 512 are 256 registers a thread of 128.
    assert not resources.fits("forward", shape, config(columns=512), "9.0")
    # Five chunks in flight are more than a small GPU has, or one that nobody knows.
    deep = config(stages=5)
    assert resources.fits("forward", shape, deep, "9.0")
    assert not resources.fits("forward", shape, deep, "8.6")
    assert not resources.fits("forward", shape, deep, None)
    # Sixteen warps share 64 x 16 logits, two a thread.
    assert not resources.fits("forward", shape, config(columns=16, warps=16), "9.0")


def test_what_is_loaded_twice_takes_shared_memory_twice():
    """By three products of TF32: the keys in "dquery", queries and gradients in "dkeyvalue"."""
    exact, by_thirds = (
        CallSpec(checks.neighborhood((56, 56), 7), 32, 32, "float32", False, products)
        for products in ("float32", "tf32x3")
    )
    for kernel, again in (("forward", 0), ("dquery", 32), ("dkeyvalue", 64)):
        more = 2 * 64 * again * 4
        taken = resources.shared_memory(kernel, exact, config())
        assert resources.shared_memory(kernel, by_thirds, config()) == taken + more


def test_float32_takes_twice_the_shared_memory():
    half, full = (
        resources.shared_memory("dquery", shape_of(32, False, dtype), config())
        for dtype in ("float16", "float32")
    )
    assert full == 2 * half
