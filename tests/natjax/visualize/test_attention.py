"""Attention weights and maps."""

import draw
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import natjax
from natjax import NATConfig, NeighborhoodAttention2D
from natjax.visualize.attention_figure import deepest

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


def test_saliency_is_the_gradient_of_a_share():
    model, images = _model(), draw.normal((2, 24, 24, 3))
    found = natjax.saliency(model, images, label=3)
    step = jnp.zeros((1, 24, 24, 3)).at[0, 7, 9].set(1e-3)
    shares = lambda x: jax.nn.log_softmax(model(x))[:, 3]  # noqa: E731
    slopes = [
        (shares(images + step * channel) - shares(images - step * channel)) / 2e-3
        for channel in jnp.eye(3)[:, None, None, None]
    ]
    np.testing.assert_allclose(
        found[:, 7, 9], jnp.abs(jnp.stack(slopes)).max(0), rtol=0.05, atol=1e-3
    )
    likeliest = int(model(images[:1]).argmax())
    np.testing.assert_array_equal(
        natjax.saliency(model, images[:1]), natjax.saliency(model, images[:1], label=likeliest)
    )


def test_the_picture_has_levels_heads_and_windows():
    model, image = _model(), draw.normal((1, 24, 32, 3))
    figure = natjax.plot_attention(model, image, (9, 31))
    places = np.array(figure.axes).reshape(3, 3)
    titles = [[axes.get_title() for axes in row] for row in places]
    assert titles[0] == ["the pixel", "what matters", ""]
    assert titles[1][:2] == ["levels.0.blocks.1", "head 1"]
    assert titles[2] == ["levels.1.blocks.0", "head 1", "head 2"]
    maps = natjax.attention_maps(model, image, (9, 31))
    (head,) = places[1, 1].images
    np.testing.assert_allclose(head.get_array(), maps["levels.0.blocks.1.attn"][0, 0], atol=1e-6)
    # Token (2, 7) of 6 x 8, 4 pixels each, sees with dilation 2 rows 0, 2, 4 and columns 3, 5, 7.
    window, token = places[1, 0].patches
    assert (window.get_xy(), window.get_width(), window.get_height()) == ((11.5, -0.5), 20, 20)
    assert (token.get_xy(), token.get_width()) == ((27.5, 7.5), 4)


def test_some_blocks_of_an_isotropic_model_are_shown():
    paths = [f"layers.{i}.attn" for i in range(12)]
    assert deepest(paths) == [f"layers.{i}.attn" for i in (2, 5, 8, 11)]
    assert deepest(paths[:2]) == paths[:2]


def test_what_cannot_be_drawn_is_refused():
    model = _model()
    with pytest.raises(ValueError, match="image must be a batch of one; got 2"):
        natjax.plot_attention(model, draw.normal((2, 24, 24, 3)))
    with pytest.raises(ValueError, match="label must be a class of 5, from 0; got 5"):
        natjax.saliency(model, draw.normal((1, 24, 24, 3)), label=5)
