"""Problems that aim at what breaks.

Windows as large as the layout, sizes that no tile divides, ragged dilation groups, odd head sizes.
"""

from natjax.kernels.tuning.problems import Problem

EDGES = (
    Problem(name="1d", shape=(17,), kernel_size=(5,), batch=2, heads=2),
    Problem(name="1d-window-1", shape=(9,), kernel_size=(1,)),
    Problem(name="1d-one-token", shape=(1,), kernel_size=(1,), head_dim=4),
    Problem(name="1d-window-is-input", shape=(12,), kernel_size=(12,), heads=3),
    Problem(name="1d-even", shape=(29,), kernel_size=(6,), head_dim=24),
    Problem(name="1d-long", shape=(203,), kernel_size=(9,), heads=2),
    Problem(name="1d-causal", shape=(37,), kernel_size=(8,), is_causal=True, heads=2),
    Problem(name="1d-causal-full", shape=(10,), kernel_size=(10,), is_causal=True),
    Problem(name="1d-ragged-dilation", shape=(23,), kernel_size=(3,), dilation=5),
    Problem(name="1d-stride-ragged", shape=(41,), kernel_size=(7,), stride=4),
    Problem(name="1d-blocked", shape=(40,), kernel_size=(8,), stride=8),
    Problem(
        name="1d-causal-stride-dilation",
        shape=(43,),
        kernel_size=(5,),
        stride=3,
        dilation=3,
        is_causal=True,
    ),
    Problem(name="2d-prime", shape=(19, 23), kernel_size=(7, 7), heads=2, head_dim=32),
    Problem(
        name="2d-window-times-dilation-is-input", shape=(15, 21), kernel_size=(5, 7), dilation=3
    ),
    Problem(name="2d-window-is-input", shape=(7, 6), kernel_size=(7, 6), batch=2),
    Problem(name="2d-window-1-along-an-axis", shape=(9, 20), kernel_size=(1, 5)),
    Problem(name="2d-even-odd", shape=(13, 18), kernel_size=(4, 7), head_dim=80),
    Problem(name="2d-mixed-dilation", shape=(17, 26), kernel_size=(3, 5), dilation=(4, 3), heads=2),
    Problem(name="2d-stride", shape=(21, 18), kernel_size=(7, 6), stride=(3, 6)),
    Problem(name="2d-causal-rows", shape=(11, 14), kernel_size=(4, 5), is_causal=(True, False)),
    Problem(
        name="2d-everything",
        shape=(19, 22),
        kernel_size=(4, 3),
        stride=(2, 3),
        dilation=(3, 2),
        is_causal=(False, True),
        batch=2,
        heads=4,
        kv_heads=2,
        value_dim=12,
        extra=3,
    ),
    Problem(name="2d-mqa", shape=(10, 12), kernel_size=(3, 5), heads=4, kv_heads=1, value_dim=24),
    Problem(name="2d-no-bias", shape=(16, 16), kernel_size=(7, 7), rpb=False, extra=5),
    Problem(name="3d", shape=(4, 7, 9), kernel_size=(3, 3, 5), heads=2),
    Problem(
        name="3d-everything",
        shape=(5, 9, 8),
        kernel_size=(3, 4, 2),
        stride=(2, 1, 2),
        dilation=(1, 2, 3),
        is_causal=(True, False, False),
        heads=2,
        kv_heads=1,
        value_dim=4,
        extra=2,
    ),
)


def named(name):
    """The problem of a name."""
    (problem,) = (p for p in EDGES if p.name == name)
    return problem
