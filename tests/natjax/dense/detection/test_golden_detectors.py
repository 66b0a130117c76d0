"""Whole detectors against numbers of mmdet's, with the official backbones: training and inference.

Samples are not drawn but chosen by the goldens' rule (`detection.every_nth`).
"""

import functools

import golden_detection
import golden_upernet
import goldens
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from detection import every_nth
from flax import nnx

from natjax.dense.detection.rpn import propose, rpn_losses, rpn_targets
from natjax.dense.ops.masks import paste_masks

NAMES = golden_detection.NAMES
# In the measure of the goldens' README, which says how the official float32 run errs against the
# float64 one that losses and gradients are compared with.
FEATURES, DETECTIONS = 1e-5, 5e-6
# In float64 the official run still encodes deltas in float32, and its gradients are stored so.
LOSS = {"float32": 2e-6, "float64": 1e-7}
GRADIENT = {"float32": 4e-5, "float64": 1e-5}
# In float32 a ReLU of Cascade's second head lies so near 0 that rounding decides its gradient.
RUNS = [("maskrcnn_nat", "float32"), ("cascade_dinat", "float64")]


@functools.cache
def _trained(name, dtype):
    """Loss, its parts, gradients of parameters and images, and statistics after the step."""
    with jax.enable_x64(dtype == "float64"):
        model = golden_detection.model(name, param_dtype=jnp.dtype(dtype))
        images, sizes, truth = golden_detection.batch(name, dtype=jnp.dtype(dtype))
        graph, params, statistics = nnx.split(model, nnx.Param, ...)

        def loss(params, images, statistics):
            model = nnx.merge(graph, params, statistics, copy=True)
            keys = jax.random.split(jax.random.key(0), len(images))
            total, parts = model.loss(images, sizes, truth, keys=keys, subset=every_nth)
            return total, (parts, nnx.state(model, nnx.BatchStat))

        run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
        (total, (parts, after)), gradients = run(params, images, statistics)
        return jax.tree.map(np.asarray, (total, parts, gradients, after))


@pytest.mark.parametrize(("name", "dtype"), RUNS)
def test_losses(name, dtype):
    total, parts, _, _ = _trained(name, dtype)
    golden = goldens.load(f"{name}_train")
    assert total.dtype == dtype
    assert float(total) == pytest.approx(float(golden["loss/total64"]), rel=LOSS[dtype])
    shares = {part: parts[part] for part in parts if part.endswith("positive")}
    assert len(shares) == (4 if name == "cascade_dinat" else 2)
    assert all(0 < value <= weight for value, weight in shares.values())
    parts = {part: parts[part] for part in parts if part not in shares}
    for part, (value, weight) in parts.items():
        key = f"loss/{part}".replace("accuracy", "acc")
        scale = 100 if "acc" in key else 1
        expected = float(golden[f"{key}64"].sum())  # of all levels
        ours = scale * float(value) / float(weight)
        assert ours == pytest.approx(expected, rel=LOSS[dtype]), part
    keys = {key.removesuffix("64") for key in golden.files if key.startswith("loss/")}
    assert len(keys) == len(parts) + 1


@pytest.mark.parametrize(("name", "dtype"), RUNS)
def test_gradients_of_every_parameter(name, dtype):
    _, _, (params, images), _ = _trained(name, dtype)
    ours = golden_upernet.named(params)
    theirs = golden_detection.to_ours(goldens.under(f"{name}_grads", "grad/param"))
    heads = {key for key in ours if not key.startswith("backbone.")}
    assert theirs.keys() in (ours.keys(), heads)
    largest = max(np.abs(gradient).max() for gradient in theirs.values())
    for key, gradient in theirs.items():
        scale = max(np.abs(gradient).max(), 1e-3 * largest)
        assert np.abs(ours[key] - gradient).max() < GRADIENT[dtype] * scale, key
    golden = goldens.load(f"{name}_grads")
    if "grad/input0" in golden.files:
        first = images[:1].transpose(0, 3, 1, 2)
        assert goldens.error(first, golden["grad/input0"]) < GRADIENT[dtype]


def test_running_statistics_after_the_step():
    """Of the norms of Cascade's heads, which see the sampled boxes of the whole batch."""
    after = golden_upernet.named(_trained("cascade_dinat", "float64")[3])
    expected = golden_detection.to_ours(goldens.under("cascade_dinat_grads", "after"))
    assert after.keys() == expected.keys()
    for key, array in expected.items():
        assert np.abs(after[key] - array).max() < 1e-6 * max(np.abs(array).max(), 1), key


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_pyramid_and_proposals(name):
    """The parts, where the full set of goldens is at hand."""
    golden = goldens.load(f"{name}_train")
    if "feat0" not in golden.files:
        pytest.skip("the committed selection has no maps; the losses depend on all of them")
    model = golden_detection.model(name)
    images, sizes, _ = golden_detection.batch(name)
    rpn = model.config.rpn

    @jax.jit
    def run(images):
        maps = model.backbone.features(images)
        pyramid = model.neck(maps)
        scores, deltas = model.rpn_head(pyramid)
        proposals = propose(scores, deltas, model.anchors(pyramid), sizes, rpn.training)
        return maps, pyramid, scores, deltas, proposals

    maps, pyramid, scores, deltas, proposals = run(images)
    for i, x in enumerate(maps):
        assert goldens.error(x.transpose(0, 3, 1, 2), golden[f"feat{i}"]) < FEATURES, i
    for i, x in enumerate(pyramid):
        assert goldens.error(x.transpose(0, 3, 1, 2), golden[f"fpn{i}"]) < FEATURES, i
    for ours, kind, depth in ((scores, "cls", 1), (deltas, "reg", 4)):
        theirs = [golden[f"rpn_{kind}{i}"].transpose(0, 2, 3, 1) for i in range(5)]
        flat = np.concatenate([x.reshape(len(images), -1, depth) for x in theirs], axis=1)
        assert goldens.error(ours, flat.reshape(ours.shape)) < FEATURES, kind
    for i in range(len(images)):
        expected = golden[f"proposals{i}"]
        assert proposals.valid[i].sum() == len(expected)
        ours = np.c_[proposals.boxes[i], proposals.scores[i]][: len(expected)]
        assert goldens.error(ours, expected) < DETECTIONS


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_rpn_losses_of_each_level(name):
    """Fed the official scores and deltas."""
    golden = goldens.load(f"{name}_train")
    if "rpn_cls0" not in golden.files:
        pytest.skip("the committed selection has no maps; test_losses has the sums over levels")
    model = golden_detection.model(name)
    images, sizes, truth = golden_detection.batch(name)
    maps = [golden[f"rpn_cls{i}"] for i in range(5)]
    anchors = model.anchors([jnp.zeros((1, *x.shape[2:], 1)) for x in maps])
    keys = jax.random.split(jax.random.key(0), len(images))
    padded = jnp.ceil(sizes / 32) * 32
    rpn = model.config.rpn
    targets = rpn_targets(
        keys, anchors, sizes, padded, truth.boxes, truth.valid, rpn, subset=every_nth
    )
    labels = golden["rpn_target/labels"]
    np.testing.assert_array_equal(targets.sampled.positive, labels == 0)
    used = targets.sampled.positive | targets.sampled.negative
    np.testing.assert_array_equal(used, golden["rpn_target/label_weights"] > 0)

    start = 0
    for i, x in enumerate(maps):
        scores = x.transpose(0, 2, 3, 1).reshape(len(images), -1)
        deltas = golden[f"rpn_reg{i}"].transpose(0, 2, 3, 1).reshape(*scores.shape, 4)
        part = jax.tree.map(lambda t, n=scores.shape[1], a=start: t[:, a : a + n], targets)
        start += scores.shape[1]
        found = rpn_losses(
            jnp.asarray(scores), jnp.asarray(deltas), part, smooth_l1_beta=rpn.smooth_l1
        )
        number = golden["rpn_target/num_total"].sum()
        for kind in ("cls", "bbox"):
            ours = float(found[f"loss_rpn_{kind}"][0]) / number
            expected = float(golden[f"loss/loss_rpn_{kind}64"][i])
            assert ours == pytest.approx(expected, rel=1e-5, abs=1e-8)


def _inference(name, rescale, dtype=jnp.float32):
    golden = goldens.load(f"{name}_infer")
    model = golden_detection.model(name, param_dtype=dtype)
    images, _, _ = golden_detection.batch(name, dtype=dtype)
    height, width = golden["meta/pad_shape"][:2]
    sizes = jnp.asarray(golden["meta/img_shape"][None, :2], dtype)
    scales = jnp.asarray(golden["meta/scale_factor"][None, [1, 0]], dtype) if rescale else None
    run = jax.jit(lambda images: model(images, sizes, scales=scales))
    return golden, run(images[:1, :height, :width])


@pytest.mark.parametrize(
    ("name", "rescale"), [(NAMES[0], True), (NAMES[0], False), (NAMES[1], True)]
)
def test_detections(name, rescale):
    """In pixels of the original image, and of the one that the network sees."""
    golden, found = _inference(name, rescale)
    prefix = "rescale" if rescale else "noscale"
    labels = golden[f"{prefix}/labels"]
    assert found.valid.all()
    assert found.valid.shape == (1, len(labels))
    np.testing.assert_array_equal(found.labels[0], labels)
    ours = np.c_[found.boxes[0], found.scores[0]]
    assert goldens.error(ours, golden[f"{prefix}/dets"]) < DETECTIONS
    if not rescale:
        return

    grids = golden["rescale/mask_input"]
    expected = grids if name.startswith("cascade") else 1 / (1 + np.exp(-grids))
    assert np.abs(found.masks[0] - expected).max() < 2e-5
    shape = golden["rescale/result_masks_shape"]
    size = tuple(shape[1:].tolist())
    pasted = np.asarray(paste_masks(found.masks[0], found.boxes[0], size)) >= 0.5
    masks = np.unpackbits(golden["rescale/result_masks"])[: np.prod(shape)].reshape(shape)
    np.testing.assert_array_equal(pasted[np.argsort(labels, kind="stable")], masks)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_detections_in_float64(name, x64):
    """All of inference keeps the dtype, and finds the same."""
    golden, found = _inference(name, rescale=True, dtype=jnp.float64)
    assert found.boxes.dtype == found.masks.dtype == jnp.float64
    np.testing.assert_array_equal(found.labels[0], golden["rescale/labels"])
    ours = np.c_[found.boxes[0], found.scores[0]]
    assert goldens.error(ours, golden["rescale/dets"]) < DETECTIONS
