"""Every published segmentor, as data.

Names are those of the official configurations without data and schedule; values are theirs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from natjax.dense.backbones import backbone_config
from natjax.dense.segmentation.upernet import UPerNetConfig

# The largest dilations that fit images of 512 and 640 pixels, with smaller ones in between.
_DINAT_512 = ((16,), (4, 8), (2, 3, 4), (2,))
_DINAT_640 = ((20,), (5, 10), (2, 3, 4, 5, 2, 3, 4, 5, 5), (2,))
# DiNAT_s has one dilated block in a level but the third.
_DINAT_S_512 = ((16,), (8,), (2, 3, 4), (2,))
_DINAT_S_640 = ((20,), (10,), (2, 3, 4, 5, 2, 3, 4, 5, 5), (2,))


def _at_512(name: str, drop_path: float, cycles: Sequence[Sequence[int]] = ()) -> UPerNetConfig:
    backbone = backbone_config(name, drop_path=drop_path, input_size=512, cycles=cycles)
    return UPerNetConfig(backbone=backbone)


def _at_640(name: str, drop_path: float, cycles: Sequence[Sequence[int]]) -> UPerNetConfig:
    backbone = backbone_config(name, drop_path=drop_path, input_size=640, cycles=cycles)
    return UPerNetConfig(backbone=backbone, summary_size=(640, 2560))


_PUBLISHED = {
    "upernet_nat_mini": _at_512("nat_mini", 0.2),
    "upernet_nat_tiny": _at_512("nat_tiny", 0.3),
    "upernet_nat_small": _at_512("nat_small", 0.5),
    "upernet_nat_base": _at_512("nat_base", 0.5),
    "upernet_dinat_mini": _at_512("dinat_mini", 0.2, _DINAT_512),
    "upernet_dinat_tiny": _at_512("dinat_tiny", 0.3, _DINAT_512),
    "upernet_dinat_small": _at_512("dinat_small", 0.5, _DINAT_512),
    "upernet_dinat_base": _at_512("dinat_base", 0.5, _DINAT_512),
    "upernet_dinat_large": _at_640("dinat_large", 0.3, _DINAT_640),
    "upernet_dinat_s_tiny": _at_512("dinat_s_tiny", 0.3, _DINAT_S_512),
    "upernet_dinat_s_small": _at_512("dinat_s_small", 0.3, _DINAT_S_512),
    "upernet_dinat_s_base": _at_512("dinat_s_base", 0.3, _DINAT_S_512),
    "upernet_dinat_s_large": _at_640("dinat_s_large", 0.3, _DINAT_S_640),
}

# natjax's own, for 64 x 64 images; from no paper.
_OWN = {
    "upernet_nat_micro": UPerNetConfig(
        backbone=backbone_config("nat_micro", drop_path=0.0, input_size=64),
        num_classes=11,
        channels=64,
        auxiliary_channels=32,
        summary_size=(64, 64),
    ),
}

SEGMENTORS: Mapping[str, UPerNetConfig] = _PUBLISHED | _OWN
