"""Every published variant, as data.

Names and values are those of the official PyTorch code, which is what the checkpoints need. Head
size is 32 throughout. Where a level dilates, its odd blocks (counting from 0) do, and the even ones
stay local.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from natjax.backbones.isotropic import IsotropicConfig
from natjax.backbones.nat import NATConfig

IMAGENET_22K_CLASSES = 21841


def alternate(depths: tuple[int, ...], dilations: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Per level, 1 for even blocks and the level's dilation for odd ones.

    >>> alternate((3, 4), (8, 4))
    ((1, 8, 1), (1, 4, 1, 4))
    """
    return tuple(
        tuple(dilation if block % 2 else 1 for block in range(depth))
        for depth, dilation in zip(depths, dilations, strict=True)
    )


def _hierarchical(
    dim: int, depths: tuple[int, ...], mlp_ratio: float, drop_path: float
) -> NATConfig:
    heads = tuple(dim * 2**i // 32 for i in range(len(depths)))
    return NATConfig(
        dim=dim, depths=depths, num_heads=heads, mlp_ratio=mlp_ratio, drop_path=drop_path
    )


def _dilated(base: NATConfig, dilations: tuple[int, ...], **changes: object) -> NATConfig:
    return dataclasses.replace(base, dilations=alternate(base.depths, dilations), **changes)


# The largest dilations that fit (K * d = map size) at 224 x 224 and at 384 x 384.
_AT_224, _AT_384 = (8, 4, 2, 1), (13, 6, 3, 1)
_22K = {"num_classes": IMAGENET_22K_CLASSES, "drop_path": 0.2}

_MINI = _hierarchical(64, (3, 4, 6, 5), 3.0, 0.2)
_TINY = _hierarchical(64, (3, 4, 18, 5), 3.0, 0.2)
_SMALL = _hierarchical(96, (3, 4, 18, 5), 2.0, 0.3)
_BASE = _hierarchical(128, (3, 4, 18, 5), 2.0, 0.5)
_LARGE = _hierarchical(192, (3, 4, 18, 5), 2.0, 0.35)

# Layer scale is irregular: NAT-Small has it, DiNAT-Small and DiNAT-Large do not.
_SCALED = {"layer_scale": 1e-5}

# Neighborhood Attention Transformer.
_NAT = {
    "nat_mini": _MINI,
    "nat_tiny": _TINY,
    "nat_small": dataclasses.replace(_SMALL, **_SCALED),
    "nat_base": dataclasses.replace(_BASE, **_SCALED),
}

# Dilated Neighborhood Attention Transformer. 21k: pre-training on ImageNet-22K, whose checkpoints
# are fine-tuned to the variants without it. The 11x11 ones have resized position biases, and at
# 224 x 224 pad: K * d = 88 exceeds the first map's 56.
_DINAT = {
    "dinat_mini": _dilated(_MINI, _AT_224),
    "dinat_tiny": _dilated(_TINY, _AT_224),
    "dinat_small": _dilated(_SMALL, _AT_224),
    "dinat_base": _dilated(_BASE, _AT_224, **_SCALED),
    "dinat_large": _dilated(_LARGE, _AT_224),
    "dinat_large_384": _dilated(_LARGE, _AT_384, input_size=384),
    "dinat_large_384_11x11": _dilated(_LARGE, _AT_224, input_size=384, kernel_size=11),
    "dinat_large_21k": _dilated(_LARGE, _AT_224, **_22K),
    "dinat_large_21k_11x11": _dilated(_LARGE, _AT_224, kernel_size=11, **_22K),
}


def _swin_like(dim: int, depth: int, drop_path: float) -> NATConfig:
    base = _hierarchical(dim, (2, 2, depth, 2), 4.0, drop_path)
    return _dilated(base, _AT_224, overlapping=False)


_S_LARGE = _swin_like(192, 18, 0.35)

# The same paper; Swin's shape with its window attention replaced.
_DINAT_S = {
    "dinat_s_tiny": _swin_like(96, 6, 0.2),
    "dinat_s_small": _swin_like(96, 18, 0.3),
    "dinat_s_base": _swin_like(128, 18, 0.5),
    "dinat_s_large": _S_LARGE,
    "dinat_s_large_384": _dilated(_S_LARGE, _AT_384, input_size=384),
    "dinat_s_large_21k": dataclasses.replace(_S_LARGE, **_22K),
}


def _isotropic(dim: int, drop_path: float, kernel_size: int | None, dilation: int = 1):
    return IsotropicConfig(
        dim=dim,
        num_heads=dim // 32,
        drop_path=drop_path,
        kernel_size=kernel_size,
        dilations=alternate((12,), (dilation,))[0],
    )


# The same paper; ViT's shape, on 14 x 14 tokens.
_ISOTROPIC = {
    "vitrpb_small": _isotropic(384, 0.1, None),
    "vitrpb_base": _isotropic(768, 0.4, None),
    "nat_isotropic_small": _isotropic(384, 0.1, 7),
    "nat_isotropic_base": _isotropic(768, 0.4, 7),
    "dinat_isotropic_small": _isotropic(384, 0.1, 7, dilation=2),
    "dinat_isotropic_base": _isotropic(768, 0.4, 7, dilation=2),
}

# natjax's own, for 32 x 32 images (8 x 8 and 4 x 4 tokens); from no paper.
_OWN = {
    "nat_micro": NATConfig(
        dim=32,
        depths=(2, 4),
        num_heads=(2, 4),
        kernel_size=3,
        mlp_ratio=3.0,
        num_classes=10,
        input_size=32,
    ),
}

VARIANTS: Mapping[str, NATConfig | IsotropicConfig] = {
    **_NAT,
    **_DINAT,
    **_DINAT_S,
    **_ISOTROPIC,
    **_OWN,
}
