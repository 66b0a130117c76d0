"""Bad arguments: the message names argument, rule and value."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import natjax

X = jnp.zeros((2, 9, 8, 4, 6))
EXTRA = jnp.zeros((2, 3, 4, 6))

pytestmark = pytest.mark.usefixtures("unchecked")


def call(**changes):
    arguments = {"query": X, "key": X, "value": X, "kernel_size": 3}
    return natjax.na2d(**arguments | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query": X[0]}, r"query must have 5 dimensions \[B, H, W, N, D\]; got 4, shape \(9, 8"),
        ({"key": X[..., 0]}, "key must have 5 dimensions"),
        ({"value": X[0]}, "value must have 5 dimensions"),
        ({"query": X[:, :0]}, "query must have no empty dimension"),
        ({"query": X.astype(jnp.int32)}, "query must have one of the dtypes .*; got int32"),
        ({"key": X[:, :7]}, r"key must have the batch and tokens of query; got shapes \(2, 7, 8"),
        ({"key": X[:1]}, "key must have the batch and tokens of query"),
        ({"value": X[:, :, :5]}, "value must have the batch and tokens of query"),
        ({"key": X.astype(jnp.float16)}, "key must have the dtype of query; got float16 and float"),
        ({"value": X.astype(jnp.bfloat16)}, "value must have the dtype of query; got bfloat16"),
        ({"key": X[..., :5]}, "key must have the head size of query"),
        ({"value": X[..., :2, :]}, "value must have the heads of key"),
        (
            {"key": X[..., :3, :], "value": X[..., :3, :]},
            "multiple of the heads of key; got 4 and 3",
        ),
        ({"kernel_size": 0}, "kernel_size must be an integer >= 1 or 2 of them .*; got 0"),
        ({"kernel_size": (3, -1)}, r"kernel_size must be an integer >= 1 .*; got \(3, -1\)"),
        ({"kernel_size": 3.0}, "kernel_size must be an integer >= 1 .*; got 3.0"),
        ({"kernel_size": True}, "kernel_size must be an integer >= 1 .*; got True"),
        ({"kernel_size": "3"}, "kernel_size must be an integer >= 1 .*; got '3'"),
        ({"kernel_size": (3, 3, 3)}, r"kernel_size must be .* 2 of them .*; got \(3, 3, 3\)"),
        ({"kernel_size": None}, "kernel_size must be an integer >= 1 .*; got None"),
        ({"stride": 0}, "stride must be an integer >= 1 .*; got 0"),
        (
            {"stride": 4},
            r"stride must not exceed kernel_size .* stride=\(4, 4\) and kernel_size=\(3",
        ),
        ({"dilation": 0}, "dilation must be an integer >= 1 .*; got 0"),
        (
            {"dilation": (3, 3)},
            r"kernel_size \* dilation must not exceed .* dilation=\(3, 3\) and tok",
        ),
        ({"kernel_size": 9}, r"must not exceed the tokens .* tokens \(9, 8\) \(axis 1\)"),
        ({"is_causal": 1}, "is_causal must be a bool or 2 of them .*; got 1"),
        ({"is_causal": (True,)}, r"is_causal must be a bool .*; got \(True,\)"),
        ({"rpb": jnp.zeros((4, 5, 4))}, r"rpb must have shape .* = \(4, 5, 5\); got \(4, 5, 4\)"),
        ({"rpb": jnp.zeros((4, 5, 5), int)}, "rpb must have one of the dtypes .*; got int32"),
        ({"scale": 0}, "scale must be None .* finite non-zero number; got 0"),
        ({"scale": float("nan")}, "scale must be None .* number; got nan"),
        ({"scale": "1"}, "scale must be None .* number; got '1'"),
        ({"scale": jnp.ones(())}, "for a learned scale, multiply the query"),
        ({"additional_keys": EXTRA}, "must be given together; got only additional_keys"),
        ({"additional_values": EXTRA}, "must be given together; got only additional_values"),
        (
            {"additional_keys": EXTRA[..., :5], "additional_values": EXTRA},
            r"additional_keys must have shape .*; got \(2, 3, 4, 5\)",
        ),
        (
            {"additional_keys": EXTRA, "additional_values": EXTRA[:, :2]},
            r"additional_values must have shape .* same E in both; got \(2, 2, 4, 6\)",
        ),
        (
            {"additional_keys": EXTRA[:, :0], "additional_values": EXTRA[:, :0]},
            "additional tokens >= 1",
        ),
        (
            {"additional_keys": EXTRA.astype(jnp.float16), "additional_values": EXTRA},
            "additional_keys must have the dtype of key; got float16",
        ),
        (
            {"implementation": "cuda"},
            "implementation must be None or one of "
            r"\('jax_triton', 'pallas_triton', 'xla', 'reference'\)",
        ),
    ],
)
def test_fused(changes, message):
    with pytest.raises(ValueError, match=message):
        call(**changes)


@pytest.mark.parametrize("ndim", [1, 3])
def test_ranks_of_the_other_ops(ndim):
    op = getattr(natjax, f"na{ndim}d")
    with pytest.raises(ValueError, match=f"query must have {ndim + 3} dimensions"):
        op(X, X, X, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"key": X[..., :5]}, "key must have the head size of query"),
        ({"kernel_size": 10}, "must not exceed the tokens"),
        ({"rpb": jnp.zeros((4, 3, 3))}, "rpb must have shape"),
        ({"scale": 0.0}, "scale must be None"),
    ],
)
def test_qk(changes, message):
    with pytest.raises(ValueError, match=message):
        natjax.na2d_qk(**{"query": X, "key": X, "kernel_size": 3} | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": jnp.zeros((2, 9, 8, 4, 8))}, r"weights must have the product of kernel_size"),
        (
            {"weights": jnp.zeros((2, 9, 8, 6, 9))},
            "heads of weights must be a multiple of the heads",
        ),
        ({"value": X[:, :4]}, "value must have the batch and tokens of weights"),
        ({"dilation": 5}, "must not exceed the tokens"),
    ],
)
def test_av(changes, message):
    arguments = {"weights": jnp.zeros((2, 9, 8, 4, 9)), "value": X, "kernel_size": 3}
    with pytest.raises(ValueError, match=message):
        natjax.na2d_av(**arguments | changes)


def test_good_forms_are_all_taken():
    expected = call(kernel_size=(3, 5), dilation=1, is_causal=False)
    for kernel_size in ([3, 5], (np.int64(3), 5)):
        np.testing.assert_array_equal(call(kernel_size=kernel_size), expected)
    np.testing.assert_array_equal(call(scale=np.float32(0.5)), call(scale=0.5))
    np.testing.assert_array_equal(call(is_causal=np.bool_(False)), call())


def test_errors_come_at_trace_time():
    with pytest.raises(ValueError, match="kernel_size"):
        jax.eval_shape(lambda x: natjax.na2d(x, x, x, 20), X)


def test_ops_share_names_order_and_kind_of_arguments():
    for suffix in ("", "_qk", "_av"):
        signatures = [inspect.signature(getattr(natjax, f"na{n}d{suffix}")) for n in (1, 2, 3)]
        kinds = [
            [(p.name, p.kind, p.default) for p in signature.parameters.values()]
            for signature in signatures
        ]
        assert kinds[0] == kinds[1] == kinds[2]
