"""Attention weights and maps."""

import draw
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import natjax
from natjax import NATConfig, NeighborhoodAttention2D

CONFIG = NATConfig(
    dim=8, depths=(2, 1), num_heads=(1, 2), kernel_size=3, num_classes=5, dilations=((1, 2), (2,))
)


def _model(**options):
    return draw.filled(lambda rngs: natjax.NAT(CONFIG, rngs=rngs, **options))


@pytest.mark.oldest
def test_weights_are_those_of_the_fused_op():
    """Weighted sums of the values by them are the output."""
    build = lambda rngs: NeighborhoodAttention2D(  # noqa: E731
        8, 2, (3, 5), dilation=(2, 1), rel_pos_bias=True, rngs=rngs
    )
    module, x = draw.filled(build), draw.normal((2, 4, 9, 8))  # 4 tokens of 6: padded
    weights = natjax.attention_weights(module, x)
    assert weights.shape == (2, 4, 9, 2, 15)
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
    padded = jnp.pad(x, ((0, 0), (0, 2), (0, 0), (0, 0)))
    value = module.qkv(padded).reshape(2, 6, 9, 6, 4)[..., 4:, :]
    full = jnp.pad(weights, ((0, 0), (0, 2), (0, 0), (0, 0), (0, 0)))
    out = natjax.na2d_av(full, value, (3, 5), dilation=(2, 1))[:, :4]
    np.testing.assert_allclose(module.proj(out.reshape(2, 4, 9, 8)), module(x), atol=1e-5)


@pytest.mark.oldest
@pytest.mark.parametrize("remat", [False, True])
def test_capture_leaves_results_and_modules_as_they_were(remat):
    model, images = _model(remat=remat), draw.normal((1, 24, 16, 3))
    before = model(images)
    logits, captured = nnx.capture(model, nnx.Intermediate)(images)
    np.testing.assert_allclose(logits, before, atol=1e-5)
    names = [".".join(map(str, path)) for path, _ in nnx.to_flat_state(captured)]
    assert sorted(names) == [
        "levels.0.blocks.0.attn.attention_weights",
        "levels.0.blocks.1.attn.attention_weights",
        "levels.1.blocks.0.attn.attention_weights",
    ]
    assert {type(v) for _, v in nnx.to_flat_state(nnx.state(model))} == {nnx.Param}


def test_a_map_is_the_weights_in_their_places():
    model, images = _model(), draw.normal((1, 24, 24, 3))
    weights = natjax.attention_weights(model, images)
    maps = natjax.attention_maps(model, images, (9, 23))  # token (2, 5) of 6 x 6, (1, 2) of 3 x 3
    found = maps["levels.0.blocks.0.attn"]
    assert found.shape == (1, 1, 6, 6)
    expected = np.zeros((6, 6), np.float32)
    expected[1:4, 3:6] = np.asarray(weights["levels.0.blocks.0.attn"])[0, 2, 5, 0].reshape(3, 3)
    np.testing.assert_allclose(found[0, 0], expected, atol=1e-6)
    dilated = np.asarray(maps["levels.0.blocks.1.attn"])[0, 0]
    assert not dilated[1::2].any()  # of row 2, dilation 2 sees the even ones alone
    np.testing.assert_allclose(dilated.sum(), 1, atol=1e-5)
    padded = np.asarray(maps["levels.1.blocks.0.attn"])
    assert padded.shape == (1, 2, 3, 3)
    assert (padded.sum((2, 3)) < 1).all()  # a map of 3 x 3 in a window of 6 x 6


def test_what_has_no_attention_weights():
    with pytest.raises(ValueError, match=r"must be or hold .*attention modules; got Linear"):
        natjax.attention_weights(nnx.Linear(3, 3, rngs=nnx.Rngs(0)), jnp.ones((1, 3)))
    with pytest.raises(ValueError, match=r"at must be a pixel of 24 x 24; got \(24, 0\)"):
        natjax.attention_maps(_model(), jnp.ones((1, 24, 24, 3)), (24, 0))


def test_dropout_of_the_weights_is_not_captured():
    build = lambda rngs: NeighborhoodAttention2D(8, 2, 3, attn_drop=0.5, rngs=rngs)  # noqa: E731
    module, x = draw.filled(build), draw.normal((1, 5, 5, 8))
    forward = nnx.capture(lambda module, x, rngs: module(x, rngs), nnx.Intermediate)
    out, captured = forward(module, x, nnx.Rngs(0))
    (weights,) = jax.tree.leaves(captured)
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
    assert not np.allclose(out, module(x), atol=1e-3)
