"""UPerNet on small backbones: sizes, training and evaluation, dtypes, what it refuses."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import natjax
from natjax import IsotropicConfig, NATConfig, UPerNet, UPerNetConfig
from natjax.nn.initial import initialise

BACKBONE = NATConfig(
    dim=4, depths=(1, 1), num_heads=(1, 2), kernel_size=3, num_classes=0, output_norms=True
)
SMALL = UPerNetConfig(backbone=BACKBONE, num_classes=5, channels=4, auxiliary_channels=4)


@functools.cache
def _made(config=SMALL, **options):
    """Graph and state of a model."""

    return nnx.split(UPerNet(config, rngs=nnx.Rngs(0), **options))


def _run(config, images, key=None, **options):
    """Logits of both heads and the statistics after the call."""
    graph, state = _made(config, **options)

    @jax.jit
    def run(state, images):
        model = nnx.merge(graph, state, copy=True)
        rngs = None if key is None else nnx.Rngs(key)
        return *model.heads(images, rngs), nnx.state(model, nnx.BatchStat)

    return run(state, images)


def _images(batch=2, height=33, width=22):
    return jax.random.normal(jax.random.key(0), (batch, height, width, 3))


def test_sizes():
    logits, auxiliary, _ = _run(SMALL, _images())
    assert logits.shape == (2, 9, 6, 5)
    assert auxiliary.shape == (2, 9, 6, 5)  # of the last map but one, the first of two
    model = nnx.merge(*_made())
    assert nnx.jit(model)(_images()).shape == (2, 33, 22, 5)


@pytest.mark.parametrize(
    "backbone",
    [
        dataclasses.replace(BACKBONE, overlapping=False, dilations=((2,), (1,))),
        IsotropicConfig(
            dim=8, depth=1, num_heads=2, kernel_size=3, patch_size=8, num_classes=0,
            output_norms=True,
        ),
    ],
    ids=["dinat_s", "isotropic"],
)  # fmt: skip
def test_other_backbones(backbone):
    config = dataclasses.replace(SMALL, backbone=backbone)
    logits, auxiliary, _ = _run(config, _images(), key=0)
    assert logits.shape[-1] == auxiliary.shape[-1] == 5
    assert jnp.isfinite(logits).all()


def test_without_auxiliary_head():
    config = dataclasses.replace(SMALL, auxiliary_channels=0)
    _, auxiliary, _ = _run(config, _images())
    assert auxiliary is None


def test_training_and_evaluation_differ_as_they_should():
    first, _, before = _run(SMALL, _images())
    again, _, _ = _run(SMALL, _images())
    np.testing.assert_array_equal(first, again)
    trained, _, after = _run(SMALL, _images(), key=0)
    other, _, _ = _run(SMALL, _images(), key=1)
    assert not np.allclose(trained, other)  # dropout
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert (old != new).any()


def test_train_and_eval_are_honoured():
    """After ``eval()`` rngs change nothing, statistics included; after ``train()`` they must be."""
    model = nnx.merge(*_made(), copy=True)
    expected = jax.jit(lambda model, x: model(x))(model, _images())
    before = jax.tree.leaves(nnx.state(model, nnx.BatchStat))
    model.eval()
    np.testing.assert_array_equal(
        nnx.jit(lambda m, x: m(x, nnx.Rngs(0)))(model, _images()), expected
    )
    for old, new in zip(before, jax.tree.leaves(nnx.state(model, nnx.BatchStat)), strict=True):
        np.testing.assert_array_equal(old, new)
    model.train()
    with pytest.raises(ValueError, match=r"rngs must be given .* dropout=0\.1"):
        model.heads(_images())


def test_drawn_at_once():
    """As `create_segmentor` makes it: what starts as a constant is as layers make it."""
    model = initialise(lambda rngs: UPerNet(SMALL, rngs=rngs), nnx.Rngs(0))
    graph, state = _made()
    assert nnx.graphdef(model) == graph
    for (path, expected), (_, value) in zip(
        nnx.to_flat_state(state), nnx.to_flat_state(nnx.state(model)), strict=True
    ):
        assert (value.shape, value.dtype) == (expected.shape, expected.dtype), path
        if not expected[...].any() or path[-1] == "scale":
            np.testing.assert_array_equal(value[...], expected[...], err_msg=path)


def test_dropout_drops_whole_channels_of_an_image():
    config = dataclasses.replace(SMALL, dropout=0.5, channels=8)
    graph, state = _made(config)
    model = nnx.merge(graph, state)
    # The classifier sums its inputs, which the norm before it has made 1.
    head = model.decode_head
    head.conv_seg.kernel.set_value(jnp.ones_like(head.conv_seg.kernel[...]))
    head.fpn_bottleneck.bn.scale.set_value(jnp.zeros(8))
    head.fpn_bottleneck.bn.bias.set_value(jnp.ones(8))
    logits, _ = model.heads(_images(16), nnx.Rngs(0))
    # 2 for each channel that is kept, the same in all pixels of an image.
    assert np.ptp(logits, axis=(1, 2)).max() < 1e-5
    kept = np.unique(np.asarray(logits).round(4))
    assert set(kept) <= set(range(0, 17, 2))
    assert len(kept) > 2


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision(dtype):
    exact, _, _ = _run(SMALL, _images(), key=0)
    logits, auxiliary, statistics = _run(SMALL, _images(), key=0, dtype=dtype)
    assert logits.dtype == auxiliary.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(statistics)} == {
        jnp.dtype("float32"),
        jnp.dtype("int32"),
    }
    assert np.abs(logits - exact).max() < 0.1 * np.abs(exact).max()


def test_one_small_image_cannot_train():
    config = dataclasses.replace(SMALL, pool_scales=(1,))
    with pytest.raises(ValueError, match="at least two images at a time"):
        _run(config, _images(1), key=0)
    assert _run(config, _images(1))[0].shape == (1, 9, 6, 5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": NATConfig(dim=4, depths=(1,), num_heads=(1,))}, "output_norms=True and num"),
        ({"num_classes": 0}, "num_classes must be an integer >= 1; got 0"),
        ({"channels": 1.5}, "channels must be an integer >= 1; got 1.5"),
        ({"pool_scales": ()}, r"pool_scales must hold integers .* got \(\)"),
        ({"pool_scales": (1, 0)}, r"pool_scales\[1\] must be an integer >= 1; got 0"),
        ({"auxiliary_channels": -1}, "auxiliary_channels must be an integer >= 0; got -1"),
        ({"auxiliary_weight": -0.1}, "auxiliary_weight must not be negative; got -0.1"),
        ({"dropout": 1.0}, r"dropout must be a rate in \[0, 1\)"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_config_errors(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **changes)


def test_create_segmentor_changes_what_it_is_told_to():
    model = nnx.eval_shape(
        lambda: natjax.create_segmentor(
            "upernet_nat_mini",
            num_classes=7,
            kernel_size=5,
            dilations=((1, 2, 1), (1,) * 4, (1,) * 6, (1,) * 5),
            drop_path=0.0,
            dropout=0.25,
            in_channels=4,
            rngs=nnx.Rngs(0),
        )
    )
    backbone = model.config.backbone
    assert (backbone.kernel_size, backbone.drop_path, backbone.in_channels) == (5, 0.0, 4)
    assert backbone.dilations[0] == (1, 2, 1)
    assert model.config.num_classes == 7
    assert model.decode_head.dropout == model.auxiliary_head.dropout == 0.25
    assert model.decode_head.conv_seg.kernel.shape == (1, 1, 512, 7)
    assert model.auxiliary_head.conv_seg.kernel.shape == (1, 1, 256, 7)
