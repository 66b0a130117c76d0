"""NATTEN's interface, against NATTEN's numbers and at the call sites of projects that use it."""

import goldens
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import natjax
import natjax.compat.natten as natten
from natjax.compat.natten import functional

UNFUSED = goldens.record("ops_unfused", "index")


def normal(*shape):
    return jax.random.normal(jax.random.key(sum(shape)), shape)


@pytest.mark.parametrize("record", UNFUSED, ids=lambda record: record["name"])
def test_unfused_ops_give_nattens_logits_and_outputs(record, x64):
    golden = goldens.under("ops_unfused", record["name"])
    arrays = {name: jnp.asarray(x, "float64") for name, x in golden.items()}
    axes = len(record["shape"])
    qk, av = (getattr(functional, f"na{axes}d_{half}") for half in ("qk", "av"))
    where = (tuple(record["kernel_size"]), tuple(record["dilation"]))
    causal = {"is_causal": tuple(record["is_causal"])}
    query = arrays["q"] * record["scale"]  # these ops do not scale
    logits = qk(query, arrays["k"], *where, arrays.get("add_k"), rpb=arrays.get("rpb"), **causal)
    np.testing.assert_allclose(logits, arrays["logits"], rtol=0, atol=1e-10)
    out = av(jax.nn.softmax(logits), arrays["v"], *where, arrays.get("add_v"), **causal)
    np.testing.assert_allclose(out, arrays["out"], rtol=0, atol=1e-10)


def test_names_of_0_14_are_the_same_ops():
    """As Hugging Face's NAT and DiNAT call them."""
    query, key, value = normal(3, 2, 4, 12, 9, 8)
    rpb = normal(4, 5, 5)
    logits = functional.natten2dqkrpb(query, key, rpb, 3, 2)
    np.testing.assert_array_equal(logits, functional.na2d_qk(query, key, 3, 2, rpb=rpb))
    plain = functional.natten2dqk(query, key, 3, 2)
    np.testing.assert_array_equal(plain, functional.na2d_qk(query, key, 3, 2))
    out = functional.natten2dav(jax.nn.softmax(logits), value, 3, 2)
    fused = natjax.na2d(
        *(jnp.moveaxis(x, 1, -2) for x in (query, key, value)), 3, dilation=2, rpb=rpb, scale=1.0
    )
    np.testing.assert_allclose(jnp.moveaxis(out, 1, -2), fused, atol=1e-5)


def test_music_structure_analysis():
    """all-in-one: one axis of time with a bias, window 5, dilation up to 2 ** i; then two axes."""
    query, key, value = normal(3, 1, 2, 40, 12)
    rpb = normal(2, 9)
    logits = functional.natten1dqkrpb(query, key, rpb, 5, 4)
    assert logits.shape == (1, 2, 40, 5)
    out = functional.natten1dav(jax.nn.softmax(logits, axis=-1), value, 5, 4)
    expected = natjax.na1d(
        *(jnp.moveaxis(x, 1, -2) for x in (query, key, value)), 5, dilation=4, rpb=rpb, scale=1.0
    )
    np.testing.assert_allclose(jnp.moveaxis(out, 1, -2), expected, atol=1e-5)


def test_diffusion_transformer():
    """HDiT: cosine similarity, so the scale is 1; the fused op if there is one."""
    query, key, value = normal(3, 2, 16, 16, 2, 16)
    query, key = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (query, key))
    assert natten.has_fused_na()
    fused = functional.na2d(query, key, value, 7, scale=1.0)
    heads_first = [jnp.moveaxis(x, -2, 1) for x in (query, key, value)]
    logits = functional.na2d_qk(*heads_first[:2], 7)
    unfused = functional.na2d_av(jax.nn.softmax(logits), heads_first[2], 7)
    np.testing.assert_allclose(fused, jnp.moveaxis(unfused, 1, -2), atol=1e-5)


def test_video_of_0_21():
    """Cosmos: three axes, stride and dilation a layer, kernels chosen by hand, the log-sum-exp."""
    query, key, value = normal(3, 1, 4, 6, 8, 2, 8)
    where = {"kernel_size": (2, 3, 4), "stride": (1, 2, 4), "is_causal": (True, False, False)}
    out, lse = natten.na3d(
        query, key, value, **where, scale=0, dilation=None, backend="cutlass-fna",
        q_tile_shape=(2, 4, 4), kv_tile_shape=(2, 4, 4), return_lse=True,
    )  # fmt: skip
    expected = natjax.na3d(query, key, value, **where, return_lse=True)
    np.testing.assert_array_equal(out, expected[0])
    np.testing.assert_array_equal(lse, expected[1])


def test_depth_has_a_window_of_its_own_in_0_15():
    query, key, value = normal(3, 1, 2, 4, 6, 6, 8)
    rpb = normal(2, 3, 5, 5)
    logits = functional.natten3dqkrpb(query, key, rpb, 2, 3, 1, 2)
    expected = functional.na3d_qk(query, key, (2, 3, 3), (1, 2, 2), rpb=rpb)
    np.testing.assert_array_equal(logits, expected)
    assert functional.natten3dav(logits, value, 2, 3, 1, 2).shape == value.shape
    assert functional.natten3dqk(query, key, 2, 3, 1, 2).shape == logits.shape


def test_attention_and_its_parts():
    query, key, value = normal(3, 2, 9, 2, 8)
    out = natten.attention(query, key, value, is_causal=True)
    logits = jnp.einsum("bqnd,bknd->bnqk", query, key) * 8**-0.5
    logits = jnp.where(jnp.tril(jnp.ones((9, 9), bool)), logits, -jnp.inf)
    expected = jnp.einsum("bnqk,bknd->bqnd", jax.nn.softmax(logits), value)
    np.testing.assert_allclose(out, expected, atol=1e-5)
    parts = [
        natten.attention(query, key[:, part], value[:, part], return_lse=True)
        for part in (slice(0, 4), slice(4, 9))
    ]
    merged, _ = natten.merge_attentions(*zip(*parts, strict=True), torch_compile=False)
    np.testing.assert_allclose(merged, natten.attention(query, key, value), atol=1e-5)


@pytest.mark.parametrize(
    "arguments",
    [
        {"dim": 16, "num_heads": 2, "kernel_size": 3, "bias": True, "attn_drop": 0.0},
        {"embed_dim": 16, "num_heads": 2, "kernel_size": 3, "rel_pos_bias": True, "stride": 1},
    ],
)
def test_modules_take_the_arguments_of_all_versions(arguments):
    module = natten.NeighborhoodAttention2D(**arguments, rngs=nnx.Rngs(0))
    same = natjax.NeighborhoodAttention2D(16, 2, 3, rel_pos_bias=True, rngs=nnx.Rngs(0))
    x = normal(1, 6, 5, 16)
    np.testing.assert_array_equal(module(x), same(x))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda q: natten.na1d(q, q, q, 3, tile=2), "na1d has no argument 'tile'"),
        (lambda q: natten.na1d(q, q, q, 3, 2), "positional"),
        (lambda q: natten.NeighborhoodAttention1D(16, 2, rngs=nnx.Rngs(0)), "needs kernel_size"),
        (
            lambda q: natten.NeighborhoodAttention1D(16, 2, 3, dim=16, rngs=nnx.Rngs(0)),
            "dim and embed_dim are one argument",
        ),
    ],
)
def test_wrong_arguments_are_type_errors(call, message):
    with pytest.raises(TypeError, match=message):
        call(normal(1, 8, 2, 4))


def test_what_is_not_supported_says_what_is():
    query = normal(1, 8, 2, 4)
    with pytest.raises(NotImplementedError, match="key_mask"):
        natten.attention(query, query, query, cumulative_seqlen_Q=np.array([0, 3, 8]))
    with pytest.raises(NotImplementedError, match="query_offset"):
        natten.attention(query[:, :3], query, query, is_causal=True)
    with pytest.raises(ValueError, match="pref must be one of"):
        natten.set_memory_usage_preference("much")
