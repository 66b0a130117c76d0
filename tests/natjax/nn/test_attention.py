"""The attention modules against the ops they are made of."""

import math
import re

import draw
import goldens
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_keys
from flax import nnx

import natjax

MODULES = {
    1: natjax.NeighborhoodAttention1D,
    2: natjax.NeighborhoodAttention2D,
    3: natjax.NeighborhoodAttention3D,
}
OPS = {1: natjax.na1d, 2: natjax.na2d, 3: natjax.na3d}
LAYOUTS = {1: (11,), 2: (7, 9), 3: (3, 5, 6)}


def _module(ndim, *args, **kwargs):
    return draw.filled(lambda rngs: MODULES[ndim](*args, rngs=rngs, **kwargs))


def _by_hand(ndim, x, params, heads, kv_heads, kernel_size, **kwargs):
    """The module, composed from matrix products and the op."""
    qkv = x @ params["qkv.kernel"]
    if "qkv.bias" in params:
        qkv = qkv + params["qkv.bias"].reshape((1,) * (x.ndim - 1) + (-1,))
    size = x.shape[-1] // heads
    ends = np.cumsum([heads * size, kv_heads * size])
    q, k, v = (y.reshape(*x.shape[:-1], -1, size) for y in jnp.split(qkv, ends, axis=-1))
    out = OPS[ndim](q, k, v, kernel_size, rpb=params.get("rpb"), **kwargs).reshape(x.shape)
    bias = params["proj.bias"].reshape((1,) * (x.ndim - 1) + (-1,))
    return out @ params["proj.kernel"] + bias


@pytest.mark.oldest
@pytest.mark.parametrize(
    ("ndim", "kernel_size", "kwargs"),
    [
        (1, 3, {"dilation": 3}),
        (1, 4, {"stride": 2, "is_causal": True, "rel_pos_bias": True}),
        (2, (3, 4), {"dilation": (2, 1), "rel_pos_bias": True}),
        (2, 3, {"qkv_bias": False, "qk_scale": 0.3, "num_kv_heads": 2}),
        (3, (2, 3, 3), {"is_causal": (True, False, False), "rel_pos_bias": True}),
    ],
)
def test_is_the_op_between_its_projections(ndim, kernel_size, kwargs):
    module = _module(ndim, 16, 4, kernel_size, **kwargs)
    x = draw.normal((2, *LAYOUTS[ndim], 16))
    params = torch_keys.flat_params(module)
    assert ("rpb" in params) == kwargs.get("rel_pos_bias", False)
    assert ("qkv.bias" in params) == kwargs.get("qkv_bias", True)
    op_kwargs = {k: kwargs[k] for k in ("stride", "dilation", "is_causal") if k in kwargs}
    op_kwargs["scale"] = kwargs.get("qk_scale")
    kv_heads = kwargs.get("num_kv_heads", 4)

    @jax.jit
    def run(x, params):
        return module(x), _by_hand(ndim, x, params, 4, kv_heads, kernel_size, **op_kwargs)

    assert goldens.error(*run(x, params)) < 1e-5


def test_parameter_names_and_shapes():
    module = _module(2, 12, 3, (3, 4), rel_pos_bias=True)
    shapes = {name: x.shape for name, x in torch_keys.flat_params(module).items()}
    assert shapes == {
        "qkv.kernel": (12, 36),
        "qkv.bias": (36,),
        "proj.kernel": (12, 12),
        "proj.bias": (12,),
        "rpb": (3, 5, 7),
    }


@pytest.mark.parametrize(
    ("ndim", "layout", "padded"), [(1, (4,), (6,)), (2, (7, 4), (7, 6)), (3, (2, 6, 7), (6, 6, 7))]
)
def test_small_layouts_are_padded_before_qkv_and_cropped_before_proj(ndim, layout, padded):
    module = _module(ndim, 8, 2, 3, dilation=2)
    x = draw.normal((2, *layout, 8))
    zeros = jnp.zeros((2, *padded, 8)).at[:, *(slice(n) for n in layout)].set(x)
    run = jax.jit(module)
    assert goldens.error(run(x), run(zeros)[:, *(slice(n) for n in layout)]) < 1e-6


def test_padding_of_a_causal_axis_is_unseen():
    module = _module(1, 8, 2, 5, is_causal=True)
    x = draw.normal((1, 9, 8))
    run = jax.jit(module)
    assert goldens.error(run(x[:, :3]), run(x)[:, :3]) < 1e-6


@pytest.mark.oldest
def test_dropouts_are_a_function_of_rngs():
    module = _module(2, 8, 2, 3, proj_drop=0.3, attn_drop=0.3, rel_pos_bias=True)
    plain = _module(2, 8, 2, 3, rel_pos_bias=True)
    x = draw.normal((2, 6, 5, 8))
    run = jax.jit(lambda key: module(x, nnx.Rngs(dropout=key)))
    first, again, other = (run(jax.random.key(seed)) for seed in (0, 0, 1))
    plain.rpb.set_value(module.rpb[...])
    np.testing.assert_array_equal(jax.jit(module)(x), jax.jit(plain)(x))
    np.testing.assert_array_equal(first, again)
    assert goldens.error(first, other) > 0.1
    assert 0.2 < float(jnp.mean(first == 0)) < 0.4  # proj_drop


def test_dropping_next_to_nothing_changes_nothing():
    module = _module(2, 8, 2, 3, stride=2, dilation=2, attn_drop=1e-9, rel_pos_bias=True)
    x = draw.normal((2, 7, 6, 8))
    run = jax.jit(lambda x, key: (module(x, nnx.Rngs(key)), module(x)))
    assert goldens.error(*run(x, jax.random.key(0))) < 1e-5


def test_an_image_in_a_batch_of_larger_ones_is_as_if_alone():
    """Its own tokens and borders decide, and nothing of what it is filled up with."""
    module = _module(2, 8, 2, 3, is_causal=True, rel_pos_bias=True)  # whose windows do not shift
    x = draw.normal((2, 6, 5, 8))
    sizes = jnp.array([[6, 5], [4, 3]])
    run = jax.jit(lambda x: module(x, key_mask=natjax.mask_of_sizes(sizes, (6, 5))))
    alone = jax.jit(module)(x[1:, :4, :3])
    assert goldens.error(run(x)[1:, :4, :3], alone) < 1e-6
    other = run(x.at[1, 4:].set(7.0).at[1, :, 3:].set(7.0))
    np.testing.assert_array_equal(other[1, :4, :3], run(x)[1, :4, :3])
    weights = natjax.attention_weights(module, x)
    np.testing.assert_allclose(weights.sum(-1), 1.0, rtol=1e-6)


def test_a_mask_of_all_tokens_is_none():
    module = _module(1, 8, 2, 5, is_causal=True)
    x = draw.normal((1, 3, 8))
    run = jax.jit(lambda x, mask: (module(x, key_mask=mask), module(x)))
    assert goldens.error(*run(x, jnp.ones((1, 3), bool))) < 1e-6


def test_turning_a_circle_turns_the_output():
    module = _module(2, 8, 2, 3, dilation=(1, 2), is_periodic=(False, True), rel_pos_bias=True)
    x = draw.normal((1, 5, 8, 8))
    run = jax.jit(module)
    assert goldens.error(run(jnp.roll(x, 3, axis=2)), jnp.roll(run(x), 3, axis=2)) < 1e-5


def test_masks_of_sizes():
    sizes = jnp.array([[4, 7], [8, 1], [0, 8]])
    mask = np.asarray(natjax.mask_of_sizes(sizes, (2, 4), patch_size=(4, 2)))
    for image, (height, width) in zip(mask, [(1, 4), (2, 1), (0, 4)], strict=True):
        assert image[:height, :width].all()
        assert image.sum() == height * width


@pytest.mark.usefixtures("unchecked")
def test_bad_masks():
    with pytest.raises(ValueError, match=r"sizes must be whole numbers of shape \(batch, 2\)"):
        natjax.mask_of_sizes(jnp.zeros((3, 1), int), (4, 4))
    with pytest.raises(ValueError, match="patch_size must be an integer >= 1"):
        natjax.mask_of_sizes(jnp.zeros((3, 2), int), (4, 4), patch_size=0)
    module = _module(1, 8, 2, 3, is_periodic=True)
    with pytest.raises(ValueError, match=r"key_mask must have .* \(1, 5\); got shape \(1, 4\)"):
        module(jnp.ones((1, 5, 8)), key_mask=jnp.ones((1, 4), bool))
    with pytest.raises(ValueError, match=r"at least kernel_size \* dilation = \(3,\) tokens"):
        module(jnp.ones((1, 2, 8)))


@pytest.mark.oldest
def test_low_precision_computation_with_float32_parameters():
    exact = _module(2, 8, 2, 3, rel_pos_bias=True)
    module = _module(2, 8, 2, 3, rel_pos_bias=True, dtype=jnp.bfloat16)
    x = draw.normal((1, 6, 5, 8))
    out = jax.jit(module)(x.astype(jnp.bfloat16))
    assert out.dtype == jnp.bfloat16
    assert {p.dtype.name for p in torch_keys.flat_params(module).values()} == {"float32"}
    assert goldens.error(np.asarray(out, np.float32), jax.jit(exact)(x)) < 3e-2


def test_gradients_reach_every_parameter():
    module = _module(2, 8, 2, 3, rel_pos_bias=True)
    graph, params = nnx.split(module)
    x = draw.normal((2, 5, 5, 8))
    gradient = jax.jit(jax.grad(lambda p: jnp.sum(nnx.merge(graph, p)(x) ** 2)))(params)
    for name, value in torch_keys.flat_params(gradient).items():
        assert jnp.all(jnp.isfinite(value)), name
        assert jnp.any(value != 0), name


@pytest.mark.optimised
def test_gradients_of_query_key_and_value_are_joined_once():
    """Heads that are split off before query, key and value cost two more copies of all three."""
    module = _module(2, 32, 4, 3, implementation="xla")
    graph, state = nnx.split(module)
    x = draw.normal((2, 12, 12, 32))

    def gradients(state, x):
        return jax.vjp(lambda state, x: nnx.merge(graph, state)(x), state, x)[1](x)

    program = jax.jit(gradients).lower(state, x).compile().as_text()
    joined = re.findall(r"= f32\[([\d,]+)\]\S* concatenate\(", program)
    sizes = [math.prod(map(int, dims.split(","))) for dims in joined]
    assert sizes.count(3 * x.size) == 1


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_heads": 3}, r"embed_dim must be a multiple of num_heads; got embed_dim=8 and .*3"),
        ({"num_heads": 0}, r"num_heads must be an integer >= 1.* got 0"),
        ({"num_kv_heads": 3}, r"num_kv_heads must divide num_heads; got num_kv_heads=3 and .*2"),
        (
            {"kernel_size": (3, 3, 3)},
            r"kernel_size must be an integer >= 1 or 2 of them.*\(3, 3, 3",
        ),
        ({"stride": 4}, r"stride must not exceed kernel_size.*stride=\(4, 4\)"),
        ({"dilation": 0}, r"dilation must be an integer >= 1.* got 0"),
        ({"is_causal": 1}, r"is_causal must be a bool.* got 1"),
        ({"qk_scale": 0.0}, r"qk_scale must be None .* non-zero number; got 0\.0"),
        ({"proj_drop": 1.0}, r"proj_drop must be a rate in \[0, 1\); got 1\.0"),
        ({"attn_drop": -0.1}, r"attn_drop must be a rate in \[0, 1\); got -0\.1"),
        ({"is_periodic": 1}, r"is_periodic must be a bool.* got 1"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_arguments(kwargs, message):
    kwargs = {"embed_dim": 8, "num_heads": 2, "kernel_size": 3} | kwargs
    with pytest.raises(ValueError, match=message):
        natjax.NeighborhoodAttention2D(**kwargs, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("shape", [(2, 5, 8), (2, 5, 5, 4)])
@pytest.mark.usefixtures("unchecked")
def test_bad_inputs(shape):
    with pytest.raises(ValueError, match=r"x must have 4 dimensions.*embed_dim=8"):
        _module(2, 8, 2, 3)(jnp.ones(shape))


@pytest.mark.usefixtures("unchecked")
def test_implementation_is_passed_on():
    with pytest.raises(ValueError, match=r"implementation must be None or one of.*'abacus'"):
        _module(1, 8, 2, 3, implementation="abacus")(jnp.ones((1, 5, 8)))
