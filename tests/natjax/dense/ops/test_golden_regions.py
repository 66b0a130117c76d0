"""RoIAlign, mask targets and pasted masks against numbers of mmcv's and mmdet's code."""

import goldens
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from natjax.dense.ops.masks import mask_targets, paste_masks
from natjax.dense.ops.roi_align import roi_align, roi_levels


def _both_images(array):
    return jnp.broadcast_to(jnp.asarray(array)[None], (2, *array.shape))


def _cases():
    return [key for key in goldens.cases("det_roialign", "out") if key.endswith("_aligned")]


@pytest.mark.parametrize("case", _cases())
def test_roi_align_and_its_gradient(case):
    """Boxes of all kinds: tiny, of size 0, partly and wholly outside, larger than the map."""
    arrays = goldens.load("det_roialign")
    size, ratio, _ = case.split("_")
    sizes = tuple(map(int, size.split("x")))
    images = arrays["rois"][:, 0].astype(int)
    boxes = _both_images(arrays["rois"][:, 1:])
    valid = jnp.asarray(images[None] == np.arange(2)[:, None])

    def align(x):
        return roi_align(
            [x],
            boxes,
            strides=[4],
            output_size=sizes * 2 if len(sizes) == 1 else sizes,
            valid=valid,
            sampling_ratio=int(ratio[2:]),
        )

    x = jnp.asarray(arrays["input"].transpose(0, 2, 3, 1))
    out, transpose = jax.vjp(jax.jit(align), x)
    own = np.asarray(out)[images, np.arange(len(images))]
    assert goldens.error(own.transpose(0, 3, 1, 2), arrays[f"{case}/out"]) < 2e-6
    assert not np.any(np.asarray(out)[1 - images, np.arange(len(images))])

    (gradient,) = transpose(_both_images(arrays[f"{case}/cotangent"].transpose(0, 2, 3, 1)))
    assert goldens.error(gradient.transpose(0, 3, 1, 2), arrays[f"{case}/grad"]) < 2e-6


def test_roi_align_in_float64(x64):
    arrays = goldens.load("det_roialign")
    images = arrays["rois"][:, 0].astype(int)
    boxes = _both_images(arrays["rois"][:, 1:].astype(np.float64))
    x = jnp.asarray(arrays["input"].transpose(0, 2, 3, 1), jnp.float64)
    align = jax.jit(lambda x: roi_align([x], boxes, strides=[4], output_size=7))
    out = np.asarray(align(x))
    assert out.dtype == np.float64
    own = out[images, np.arange(len(images))].transpose(0, 3, 1, 2)
    assert goldens.error(own, arrays["7_sr0_aligned/out64"]) < 1e-12


def test_levels_of_a_pyramid():
    arrays = goldens.load("det_masks")
    boxes = jnp.asarray(arrays["levels/rois"][:, 1:])
    np.testing.assert_array_equal(roi_levels(boxes, 4), arrays["levels/level"])

    rois = arrays["levels/rois2"]
    pyramid = [jnp.asarray(arrays[f"levels/feat{i}"].transpose(0, 2, 3, 1)) for i in range(4)]
    out = roi_align(pyramid, _both_images(rois[:, 1:]), strides=[4, 8, 16, 32], output_size=7)
    own = np.asarray(out)[rois[:, 0].astype(int), np.arange(len(rois))]
    assert goldens.error(own.transpose(0, 3, 1, 2), arrays["levels/roi_feats"]) < 1e-6


@pytest.mark.parametrize("size", [14, 28])
def test_mask_targets(size):
    arrays = goldens.load("det_masks")
    targets = mask_targets(
        jnp.asarray(arrays["mask/bitmaps"] > 0),
        jnp.asarray(arrays["mask/boxes"]),
        jnp.asarray(arrays["mask/gt_inds"]),
        size=size,
    )
    np.testing.assert_array_equal(targets, arrays[f"mask/target_bitmap{size}"] > 0)


def test_paste_masks():
    arrays = goldens.load("det_masks")
    masks, boxes = jnp.asarray(arrays["paste/masks"])[:, 0], jnp.asarray(arrays["paste/boxes"])
    pasted = paste_masks(masks, boxes, arrays["paste/prob"].shape[1:])
    assert goldens.error(pasted, arrays["paste/prob"]) < 1e-5
    np.testing.assert_array_equal(np.packbits(np.asarray(pasted) >= 0.5), arrays["paste/binary"])
