"""Problems for the kernels for large windows on TPUs."""

import functools

from natjax.kernels.tuning.problems import Problem

NO_BIAS = functools.partial(Problem, rpb=False)
BIAS = functools.partial(Problem, rpb=True)
# Maps of several tiles with several chunks each, with the limits of `few_logits`.
PROBLEMS = (
    # Neither axis divides, heads of 128 channels and keys that are one head.
    NO_BIAS(name="2d", shape=(21, 27), kernel_size=(8, 11), heads=2, kv_heads=1, head_dim=128),
    # Groups of two lengths, a window of several queries, three heads in the lanes, and values
    # that are smaller.
    NO_BIAS(
        name="2d-everything",
        shape=(29, 33),
        kernel_size=(6, 9),
        stride=(2, 3),
        dilation=(1, 2),
        is_causal=(True, False),
        batch=2,
        heads=6,
        kv_heads=3,
        head_dim=40,
        value_dim=33,
        extra=3,
    ),
    NO_BIAS(name="3d", shape=(7, 9, 20), kernel_size=(4, 5, 12), heads=1, head_dim=64),
    NO_BIAS(
        name="3d-causal-dilation",
        shape=(8, 9, 18),
        kernel_size=(5, 3, 7),
        dilation=(1, 2, 1),
        is_causal=(True, False, False),
        batch=2,
        heads=4,
        head_dim=32,
    ),
    # Windows that are blocks: every chunk within one is seen as a whole.
    NO_BIAS(name="1d-blocked", shape=(700,), kernel_size=(256,), stride=256, heads=2, head_dim=24),
    BIAS(name="2d-bias", shape=(19, 27), kernel_size=(6, 11), batch=2, heads=2, head_dim=64),
    # Three heads for two blocks of lanes, and chunks with several rows of the map in a vector.
    BIAS(
        name="2d-bias-everything",
        shape=(23, 33),
        kernel_size=(6, 9),
        stride=(2, 3),
        dilation=(1, 2),
        is_causal=(True, False),
        heads=3,
        kv_heads=1,
        head_dim=64,
        extra=3,
    ),
    BIAS(name="3d-bias", shape=(6, 7, 18), kernel_size=(4, 5, 9), heads=1, head_dim=128),
    BIAS(name="1d-bias", shape=(500,), kernel_size=(200,), heads=2, head_dim=24),
)
# Tokens split over 2x4 or 2x3 devices: neither tiles nor chunks divide parts, and halos of the last
# axis are longer than they.
SPLIT_2D = BIAS(
    name="2d-split",
    shape=(22, 60),
    kernel_size=(8, 20),
    stride=(2, 1),
    is_causal=(True, False),
    heads=2,
    head_dim=64,
)
SPLIT_3D = BIAS(
    name="3d-split",
    shape=(3, 14, 60),
    kernel_size=(2, 7, 13),
    stride=(1, 2, 1),
    dilation=(1, 1, 2),
    batch=2,
    heads=4,
    kv_heads=2,
    head_dim=32,
    extra=2,
)
