"""What a detector promises beyond the goldens' numbers, on a very small one."""

import dataclasses

import detection
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from natjax import MaskRCNN, MaskRCNNConfig, NATConfig
from natjax.dense.detection.config import (
    CASCADE_STAGES,
    BoxHeadConfig,
    ProposalConfig,
    RPNConfig,
    SamplerConfig,
)
from natjax.dense.detection.targets import Truth

BATCH, SIDE, PLACES = 8, 64, 3
BACKBONE = NATConfig(
    dim=4,
    depths=(1, 1, 1, 1),
    num_heads=(1, 1, 1, 1),
    kernel_size=3,
    num_classes=0,
    output_norms=True,
)
CONFIG = MaskRCNNConfig(
    backbone=BACKBONE,
    num_classes=3,
    channels=4,
    rpn=RPNConfig(
        sampler=SamplerConfig(number=16, positive_fraction=0.5),
        training=ProposalConfig(per_level=30, kept=12),
        inference=ProposalConfig(per_level=30, kept=12),
    ),
    box_head=BoxHeadConfig(convs=1, conv_channels=4, linears=1, linear_channels=8, loss="giou"),
    stages=CASCADE_STAGES[:2],
    mask_channels=4,
    sampler=SamplerConfig(number=8, positive_fraction=0.25),
    score_threshold=0.2,
    max_detections=6,
)
GRAPH, STATE = nnx.split(MaskRCNN(CONFIG, rngs=nnx.Rngs(0)))
SIZES = jnp.asarray([[64, 64], [64, 50], [40, 64], [33, 47]] * 2, jnp.float32)


def _images(seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.standard_normal((BATCH, SIDE, SIDE, 3)), jnp.float32)


def _truth(seed=0):
    rng = np.random.default_rng(seed)
    boxes = detection.random_boxes(rng, (BATCH, PLACES), size=(33.0, 47.0), least=6)
    pixels = np.arange(SIDE) + 0.5
    x, y = pixels[None, None, None], pixels[None, None, :, None]
    x1, y1, x2, y2 = (boxes[..., i, None, None] for i in range(4))
    return Truth(
        boxes=jnp.asarray(boxes),
        labels=jnp.asarray(rng.integers(0, 3, (BATCH, PLACES)), jnp.int32),
        valid=jnp.ones((BATCH, PLACES), bool),
        masks=jnp.asarray((x > x1) & (x < x2) & (y > y1) & (y < y2)),
    )


def _keys(seed=0):
    return jax.random.split(jax.random.key(seed), BATCH)


@jax.jit
def run(state, images, truth, keys):
    """Loss, its parts, and the gradient of the parameters."""
    params, rest = nnx.split_state(state, nnx.Param, ...)

    def loss(params):
        model = nnx.merge(GRAPH, params, rest, copy=True)
        return model.loss(images, SIZES, truth, keys=keys)

    return jax.value_and_grad(loss, has_aux=True)(params)


def _close(a, b, tolerance=1e-5):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance), a, b
    )


def _is_finite(tree):
    return all(np.isfinite(x).all() for x in jax.tree.leaves(tree))


@pytest.mark.slow
def test_samples_are_a_pure_function_of_the_keys():
    first, again = (run(STATE, _images(), _truth(), _keys()) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    other = run(STATE, _images(), _truth(), _keys(1))
    assert other[0][0] != first[0][0]


def test_places_without_objects_change_nothing():
    """Empty places may hold anything, and an object without area is none."""
    truth = _truth()
    fewer = truth._replace(valid=truth.valid.at[:, 2].set(False))
    junk = fewer._replace(
        boxes=fewer.boxes.at[:, 2].set(jnp.asarray([30.0, 30, 10, 10])),
        labels=fewer.labels.at[:, 2].set(2),
        masks=fewer.masks.at[:, 2].set(True),
    )
    no_area = truth._replace(boxes=truth.boxes.at[:, 2, 2].set(truth.boxes[:, 2, 0]))
    expected = run(STATE, _images(), fewer, _keys())
    for other in (junk, no_area):
        jax.tree.map(np.testing.assert_array_equal, expected, run(STATE, _images(), other, _keys()))
    assert expected[0][0] != run(STATE, _images(), truth, _keys())[0][0]


@pytest.mark.parametrize("images", [slice(None), slice(1, 2)])
def test_images_without_objects_are_background(images):
    truth = _truth()
    truth = truth._replace(valid=truth.valid.at[images].set(False))
    (total, parts), gradient = run(STATE, _images(), truth, _keys())
    assert _is_finite((total, gradient))
    assert parts["loss_rpn_cls"][0] > 0
    if images == slice(None):
        for name in ("loss_rpn_bbox", "s0.loss_bbox", "s1.loss_bbox", "s0.loss_mask"):
            assert parts[name][0] == 0, name
        assert parts["s0.loss_mask"][1] == 0
        # Of background alone the second stage sees as much as the first.
        assert parts["s1.loss_cls"][1] == parts["s0.loss_cls"][1] > 0


def test_padding_is_not_trained_on():
    """Anchors beyond an image's own padding do not count: what lies there moves the loss little."""
    truth, images = _truth(), _images()
    truth = truth._replace(valid=jnp.zeros_like(truth.valid))
    (_, parts), _ = run(STATE, images, truth, _keys())
    weight = float(parts["loss_rpn_cls"][1])
    # Each image has 16 background anchors in its sample, and one more counts for its positives.
    assert weight == BATCH * 17


def test_a_batch_over_eight_devices():
    """Losses and gradients of the whole batch, normalised as a whole; maps stay where they are."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    over_batch, everywhere = (jax.NamedSharding(mesh, jax.P(*axes)) for axes in (("data",), ()))
    batch = jax.device_put((_images(), _truth(), _keys()), over_batch)
    state = jax.device_put(STATE, everywhere)
    sharded, alone = run(state, *batch), run(STATE, _images(), _truth(), _keys())
    _close(sharded[0], alone[0], tolerance=1e-4)
    _close(sharded[1], alone[1], tolerance=1e-4)


def test_detections_lie_in_their_images():
    model = nnx.merge(GRAPH, STATE)
    find = nnx.jit(lambda model, images, scales: model(images, SIZES, scales=scales))
    scales = jnp.full((BATCH, 2), jnp.asarray([2.0, 0.5]))
    found = find(model, _images(), jnp.ones((BATCH, 2)))
    assert found.valid.any()
    limits = jnp.concatenate([SIZES[:, ::-1]] * 2, axis=1)[:, None]
    assert ((found.boxes >= 0) & (found.boxes <= limits)).all()
    assert (np.diff(found.scores, axis=1) <= 0).all()
    assert (np.asarray(found.scores)[np.asarray(found.valid)] > CONFIG.score_threshold).all()
    empty = ~np.asarray(found.valid)
    for array in (found.boxes, found.scores, found.labels, found.masks):
        assert not np.asarray(array)[empty].any()
    # In the original images heights were half of these, widths twice.
    original = find(model, _images(), scales)
    factors = jnp.asarray([2.0, 0.5, 2.0, 0.5])[None, None]
    _close(original.boxes, found.boxes * factors, tolerance=1e-3)
    _close(original.masks, found.masks, tolerance=1e-3)


def test_half_precision_computes_boxes_in_float32():
    model = MaskRCNN(CONFIG, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    out = nnx.eval_shape(lambda model, images: model(images), model, _images())
    assert {out.boxes.dtype, out.scores.dtype, out.masks.dtype} == {jnp.dtype(jnp.float32)}
    pyramid = nnx.eval_shape(lambda model, images: model.pyramid(images), model, _images())
    assert {x.dtype for x in pyramid} == {jnp.dtype(jnp.bfloat16)}
    losses = nnx.eval_shape(
        lambda model, images: model.loss(images, SIZES, _truth(), keys=_keys())[0], model, _images()
    )
    assert losses.dtype == jnp.float32


class Pooled(nnx.Module):
    """A backbone of one's own, without parameters."""

    def features(self, images, rngs=None):
        del rngs
        x = jnp.stack([images[..., i] for i in (0, 1, 2, 0)], axis=-1)
        return [x[:, ::stride, ::stride] for stride in (4, 8, 16, 32)]


def test_a_backbone_of_ones_own():
    config = dataclasses.replace(CONFIG, backbone=(4, 4, 4, 4))
    model = MaskRCNN(config, Pooled(), rngs=nnx.Rngs(0))
    found = nnx.eval_shape(lambda model, images: model(images), model, _images())
    assert found.boxes.shape == (BATCH, 6, 4)
    with pytest.raises(ValueError, match=r"backbone must be given where config\.backbone is not"):
        MaskRCNN(config, rngs=nnx.Rngs(0))


def test_bad_configs_and_batches():
    with pytest.raises(ValueError, match="backbone must have output_norms=True"):
        MaskRCNNConfig(backbone=dataclasses.replace(BACKBONE, num_classes=10))
    shallow = dataclasses.replace(BACKBONE, depths=(1, 1), num_heads=(1, 1), dilations=())
    with pytest.raises(ValueError, match="four levels, at strides 4 to 32; got 2"):
        MaskRCNNConfig(backbone=shallow)
    with pytest.raises(ValueError, match=r"backbone must hold 4 integers .* got \(4, 4\)"):
        MaskRCNNConfig(backbone=(4, 4))
    with pytest.raises(ValueError, match="num_classes must be an integer >= 1; got 0"):
        dataclasses.replace(CONFIG, num_classes=0)
    with pytest.raises(ValueError, match="score_threshold must be a rate in"):
        dataclasses.replace(CONFIG, score_threshold=1.5)
    with pytest.raises(ValueError, match="stages must hold at least one stage"):
        dataclasses.replace(CONFIG, stages=())
    with pytest.raises(ValueError, match=r"allow one positive box; got 0.1 of 8"):
        SamplerConfig(number=8, positive_fraction=0.1)
    with pytest.raises(ValueError, match="kept must be an integer >= 1; got 0"):
        ProposalConfig(per_level=10, kept=0)
    with pytest.raises(ValueError, match=r"scale and ratios must be positive; got 8.0 and \(\)"):
        RPNConfig(ratios=())
    with pytest.raises(ValueError, match="negative_iou must not exceed positive_iou"):
        dataclasses.replace(CASCADE_STAGES[0].assigner, negative_iou=0.8)
    with pytest.raises(ValueError, match="stds must be four positive numbers"):
        dataclasses.replace(CASCADE_STAGES[0], stds=(1.0, 1.0, 1.0, 0.0))
    truth = _truth()
    small = truth._replace(masks=truth.masks[:, :, :32])
    with pytest.raises(ValueError, match=r"truth.masks must have the size of the padded images"):
        nnx.merge(GRAPH, STATE).losses(_images(), SIZES, small, keys=_keys())


def test_unknown_loss(unchecked):
    with pytest.raises(ValueError, match="loss must be 'l1' or 'giou'; got 'iou'"):
        BoxHeadConfig(loss="iou")
