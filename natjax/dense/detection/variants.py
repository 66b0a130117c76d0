"""Every published detector, and a small one, as data.

Names are those of the official configurations without schedule and data; values are theirs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from natjax.backbones.nat import NATConfig
from natjax.dense.backbones import backbone_config
from natjax.dense.detection.config import (
    CASCADE_STAGES,
    BoxHeadConfig,
    MaskRCNNConfig,
    ProposalConfig,
    RPNConfig,
    SamplerConfig,
)

# Dilations on maps of 800 pixels and more; DiNAT_s has one dilated block in a level but the third.
_DINAT = ((28,), (7, 14), (3, 5, 7), (3,))
_DINAT_S = ((28,), (14,), (3, 5, 7), (3,))

_CASCADE_RPN = RPNConfig(
    border=0.0, smooth_l1=1 / 9, training=ProposalConfig(per_level=2000, kept=2000)
)
_CASCADE_HEAD = BoxHeadConfig(convs=4, linears=1, loss="giou", loss_weight=10.0)


def _mask_rcnn(name: str, drop_path: float, cycles: Sequence[Sequence[int]] = ()) -> MaskRCNNConfig:
    backbone = backbone_config(name, drop_path=drop_path, input_size=800, cycles=cycles)
    return MaskRCNNConfig(backbone=backbone)


def _cascade(name: str, drop_path: float, cycles: Sequence[Sequence[int]] = ()) -> MaskRCNNConfig:
    backbone = backbone_config(name, drop_path=drop_path, input_size=800, cycles=cycles)
    return MaskRCNNConfig(
        backbone=backbone, rpn=_CASCADE_RPN, stages=CASCADE_STAGES, box_head=_CASCADE_HEAD
    )


_PUBLISHED = {
    "mask_rcnn_nat_mini": _mask_rcnn("nat_mini", 0.2),
    "mask_rcnn_nat_tiny": _mask_rcnn("nat_tiny", 0.2),
    "mask_rcnn_nat_small": _mask_rcnn("nat_small", 0.35),
    "mask_rcnn_dinat_mini": _mask_rcnn("dinat_mini", 0.2, _DINAT),
    "mask_rcnn_dinat_tiny": _mask_rcnn("dinat_tiny", 0.2, _DINAT),
    "mask_rcnn_dinat_small": _mask_rcnn("dinat_small", 0.35, _DINAT),
    "mask_rcnn_dinat_s_tiny": _mask_rcnn("dinat_s_tiny", 0.2, _DINAT_S),
    "mask_rcnn_dinat_s_small": _mask_rcnn("dinat_s_small", 0.35, _DINAT_S),
    "cascade_mask_rcnn_nat_mini": _cascade("nat_mini", 0.2),
    "cascade_mask_rcnn_nat_tiny": _cascade("nat_tiny", 0.3),
    "cascade_mask_rcnn_nat_small": _cascade("nat_small", 0.3),
    "cascade_mask_rcnn_nat_base": _cascade("nat_base", 0.5),
    "cascade_mask_rcnn_dinat_mini": _cascade("dinat_mini", 0.2, _DINAT),
    "cascade_mask_rcnn_dinat_tiny": _cascade("dinat_tiny", 0.3, _DINAT),
    "cascade_mask_rcnn_dinat_small": _cascade("dinat_small", 0.5, _DINAT),
    "cascade_mask_rcnn_dinat_base": _cascade("dinat_base", 0.6, _DINAT),
    "cascade_mask_rcnn_dinat_large": _cascade("dinat_large", 0.6, _DINAT),
    "cascade_mask_rcnn_dinat_s_tiny": _cascade("dinat_s_tiny", 0.3, _DINAT_S),
    "cascade_mask_rcnn_dinat_s_small": _cascade("dinat_s_small", 0.5, _DINAT_S),
    "cascade_mask_rcnn_dinat_s_base": _cascade("dinat_s_base", 0.6, _DINAT_S),
    "cascade_mask_rcnn_dinat_s_large": _cascade("dinat_s_large", 0.6, _DINAT_S),
}

# natjax's own, for images of 128 x 128; from no paper.
_OWN = {
    "mask_rcnn_micro": MaskRCNNConfig(
        backbone=NATConfig(
            dim=32,
            depths=(1, 1, 2, 1),
            num_heads=(1, 2, 4, 8),
            kernel_size=5,
            mlp_ratio=2.0,
            num_classes=0,
            output_norms=True,
            input_size=128,
        ),
        num_classes=10,
        channels=64,
        rpn=RPNConfig(
            scale=4.0,
            sampler=SamplerConfig(number=64, positive_fraction=0.5),
            training=ProposalConfig(per_level=100, kept=100),
            inference=ProposalConfig(per_level=100, kept=50),
        ),
        box_head=BoxHeadConfig(linear_channels=128),
        mask_channels=32,
        sampler=SamplerConfig(number=32, positive_fraction=0.25),
        max_detections=20,
        summary_size=(128, 128),
    ),
}

DETECTORS: Mapping[str, MaskRCNNConfig] = _PUBLISHED | _OWN
