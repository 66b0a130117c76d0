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
            r"implementation must be None or one of \(.*'pallas_triton', .*'xla', 'reference'\)",
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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"is_periodic": 1}, "is_periodic must be a bool or 2 of them .*; got 1"),
        (
            {"is_periodic": True, "is_causal": (True, False)},
            r"is_periodic and is_causal must not both hold .*\(True, True\) .*\(True, False\)",
        ),
        (
            {"is_periodic": True, "dilation": 2},
            r"dilation must divide .* periodic axis; got dilation=\(2, 2\) and tokens \(9, 8\)",
        ),
        ({"query_ratio": 0}, "query_ratio must be an integer >= 1 .*; got 0"),
        (
            {"query_ratio": 2},
            r"query must have query_ratio=\(2, 2\) times the tokens .* \(9, 8\).*; got \(9, 8\)",
        ),
        ({"query_offset": 0.5}, "query_offset must be None, an integer or 2 of them .*; got 0.5"),
        ({"query_offset": (1, 0)}, r"query_offset must be at least 0, .*query_offset=\(1, 0\)"),
        ({"query_offset": -1}, r"query_offset must be at least 0, .*query_offset=\(-1, -1\)"),
        (
            {"query": X[:, :3, :], "query_offset": (1, 0), "query_ratio": 2},
            "query_offset and the queries must be multiples of query_ratio; got query_offset",
        ),
        (
            {"length": (12, 8), "query_offset": 0},
            r"key must have all tokens .* length=\(12, 8\), unless key_offset .*; got \(9, 8\)",
        ),
        ({"length": 0}, "length must be an integer >= 1 .*; got 0"),
        ({"length": 5, "query_offset": 0, "key_offset": 0}, "query_offset must be at least 0"),
        (
            {"length": 20, "query_offset": (3, 0), "key_offset": (3, 0)},
            "key must hold every key that a query sees, tokens 2 to 12 along an axis; got tokens 3",
        ),
        (
            {"length": (20, 8), "query_offset": 0, "key_offset": (-1, 0)},
            r"keys must be the first .* number 20; got \(-1, 8\)",
        ),
        ({"key_mask": jnp.ones((2, 9, 8))}, "key_mask must be booleans .*; got float32 of shape"),
        ({"key_mask": jnp.ones((2, 9), bool)}, r"key_mask must be .* \(2, 9, 8\); got bool of sha"),
        ({"dropout_rate": 1.0}, "dropout_rate must be a number of at least 0 and below 1; got 1.0"),
        ({"dropout_rate": True}, "dropout_rate must be a number .*; got True"),
        ({"dropout_rate": 0.1}, "dropout_key must be a key .*; got None and dropout_rate=0.1"),
        ({"logit_soft_cap": 0}, "logit_soft_cap must be None or a finite number above 0; got 0"),
        ({"sinks": jnp.zeros(3)}, r"sinks must be one logit for each head, shape \(4,\) .*\(3,\)"),
        ({"sinks": jnp.zeros(4, int)}, "sinks must be .* got int32"),
    ],
)
def test_what_natten_has_not(changes, message):
    with pytest.raises(ValueError, match=message):
        call(**changes)


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
