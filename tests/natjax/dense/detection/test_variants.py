"""Every published detector: exact parameters, FLOPs, dilations, and how they start."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_keys
from flax import nnx

import natjax
from natjax.dense.detection.variants import DETECTORS

# Parameters and keys of the state dict, measured on the official models; published FLOPs in units
# of 1e9, at 800 x 1280 (tables of NAT and DiNAT).
PUBLISHED = {
    "mask_rcnn_nat_mini": (39_623_094, 299, 225),
    "mask_rcnn_nat_tiny": (47_540_502, 455, 258),
    "mask_rcnn_nat_small": (70_249_545, 515, 330),
    "mask_rcnn_dinat_mini": (39_623_094, 299, 225),
    "mask_rcnn_dinat_tiny": (47_540_502, 455, 258),
    "mask_rcnn_dinat_small": (70_225_929, 455, 330),
    "mask_rcnn_dinat_s_tiny": (47_794_602, 219, 263),
    "mask_rcnn_dinat_s_small": (69_112_506, 375, 350),
    "cascade_mask_rcnn_nat_mini": (77_458_296, 405, 704),
    "cascade_mask_rcnn_nat_tiny": (85_375_704, 561, 737),
    "cascade_mask_rcnn_nat_small": (108_084_747, 621, 809),
    "cascade_mask_rcnn_nat_base": (146_978_430, 621, 931),
    "cascade_mask_rcnn_dinat_mini": (77_458_296, 405, 704),
    "cascade_mask_rcnn_dinat_tiny": (85_375_704, 561, 737),
    "cascade_mask_rcnn_dinat_small": (108_061_131, 561, 809),
    "cascade_mask_rcnn_dinat_base": (146_978_430, 621, 931),
    "cascade_mask_rcnn_dinat_large": (257_886_948, 561, 1276),
    "cascade_mask_rcnn_dinat_s_tiny": (85_629_804, 325, 742),
    "cascade_mask_rcnn_dinat_s_small": (106_947_708, 481, 829),
    "cascade_mask_rcnn_dinat_s_base": (144_977_002, 481, 966),
    "cascade_mask_rcnn_dinat_s_large": (253_475_910, 481, 1357),
}


def test_every_published_name_is_here():
    assert set(natjax.list_models(kind="detector")) == {*PUBLISHED, "mask_rcnn_micro"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_and_flops(name):
    parameters, keys, gflops = PUBLISHED[name]
    model = nnx.eval_shape(lambda: natjax.create_detector(name, rngs=nnx.Rngs(0)))
    assert torch_keys.num_params(model) == parameters
    assert len(jax.tree.leaves(nnx.state(model))) == keys
    summary = natjax.model_summary(name)
    assert (summary.kind, summary.image_size) == ("detector", (800, 1280))
    assert (summary.parameters, round(summary.flops / 1e9)) == (parameters, gflops)


def test_dilations_spelled_out():
    third = (1, 3, 1, 5, 1, 7)
    assert DETECTORS["mask_rcnn_dinat_mini"].backbone.dilations == (
        (1, 28, 1),
        (1, 7, 1, 14),
        third,
        (1, 3, 1, 3, 1),
    )
    assert DETECTORS["cascade_mask_rcnn_dinat_s_large"].backbone.dilations == (
        (1, 28),
        (1, 14),
        third * 3,
        (1, 3),
    )


def test_drop_path_rates():
    rates = {name: config.backbone.drop_path for name, config in DETECTORS.items()}
    assert rates["mask_rcnn_nat_small"] == 0.35
    assert rates["cascade_mask_rcnn_nat_small"] == 0.3
    assert rates["cascade_mask_rcnn_dinat_small"] == 0.5
    assert rates["cascade_mask_rcnn_dinat_large"] == 0.6


def test_what_sets_a_cascade_apart():
    one, three = (DETECTORS[f"{kind}_nat_tiny"] for kind in ("mask_rcnn", "cascade_mask_rcnn"))
    assert (one.rpn.border, three.rpn.border) == (None, 0)
    assert (one.rpn.training.kept, three.rpn.training.kept) == (1000, 2000)
    assert [stage.loss_weight for stage in three.stages] == [1, 0.5, 0.25]
    assert [stage.assigner.positive_iou for stage in three.stages] == [0.5, 0.6, 0.7]
    assert not any(stage.assigner.match_low_quality for stage in three.stages)
    assert one.stages[0].assigner.match_low_quality


def test_layers_start_as_in_the_published_training():
    """Convolutions of pyramid and masks as mmcv's, all else of the heads at PyTorch's defaults."""
    config = natjax.MaskRCNNConfig(backbone=(8, 8, 8, 8), num_classes=7, channels=32)
    backbone = nnx.Module()
    model = natjax.MaskRCNN(config, backbone, rngs=nnx.Rngs(0))
    rpn, boxes, masks = model.rpn_head, model.roi_head.bbox_head, model.roi_head.mask_head
    for layer, fan_in in (
        (rpn.rpn_conv, 9 * 32),
        (rpn.rpn_cls, 32),
        (rpn.rpn_reg, 32),
        (boxes.shared_fcs[0], 49 * 32),
        (boxes.shared_fcs[1], 1024),
        (boxes.fc_cls, 1024),
        (boxes.fc_reg, 1024),
        (masks.upsample, 4 * 256),
        (masks.conv_logits, 256),
    ):
        bound = fan_in**-0.5
        for parameter in (layer.kernel[...], layer.bias[...]):
            assert float(jnp.abs(parameter).max()) <= bound
            if parameter.size > 20:
                assert float(jnp.abs(parameter).max()) > 0.8 * bound
            if parameter.size > 4000:
                assert float(jnp.std(parameter)) == pytest.approx(bound / 3**0.5, rel=0.05)
    for layer, fan_out in ((model.neck.fpn_convs[0].conv, 9 * 32), (masks.convs[1].conv, 9 * 256)):
        assert float(jnp.std(layer.kernel[...])) == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)
        assert not np.any(layer.bias[...])


def test_wrong_names():
    with pytest.raises(ValueError, match=r"did you mean mask_rcnn_nat_tiny"):
        natjax.detector_config("mask_rcnn_nat_tiney")
    with pytest.raises(ValueError, match=r"'upernet_nat_tiny' is made by natjax.create_segmentor"):
        natjax.create_detector("upernet_nat_tiny", rngs=nnx.Rngs(0))
