"""Names of a UPerNet's weights in the files of mmsegmentation."""

from __future__ import annotations

import dataclasses

from natjax.weights.names import Rule
from natjax.weights.tables import OFFICIAL, batch_norm, conv


def _conv_module(theirs: str, ours: str) -> tuple[Rule, ...]:
    return (*conv(f"{theirs}.conv", f"{ours}.conv"), *batch_norm(f"{theirs}.bn", f"{ours}.bn"))


_DECODE, _AUXILIARY = "decode_head", "auxiliary_head"

# Without the buffers, which ViT-RPB alone has; there is no official segmentor on it.
_BACKBONE = dataclasses.replace(OFFICIAL, buffers=())

UPERNET = _BACKBONE.under("backbone.", "backbone.").joined(
    # Their branches of pyramid pooling are the pooling, 0, and the convolution, 1.
    *_conv_module(f"{_DECODE}.psp_modules.{{i}}.1", f"{_DECODE}.psp_modules.{{i}}"),
    *_conv_module(f"{_DECODE}.bottleneck", f"{_DECODE}.bottleneck"),
    *_conv_module(f"{_DECODE}.lateral_convs.{{i}}", f"{_DECODE}.lateral_convs.{{i}}"),
    *_conv_module(f"{_DECODE}.fpn_convs.{{i}}", f"{_DECODE}.fpn_convs.{{i}}"),
    *_conv_module(f"{_DECODE}.fpn_bottleneck", f"{_DECODE}.fpn_bottleneck"),
    *conv(f"{_DECODE}.conv_seg", f"{_DECODE}.conv_seg"),
    *_conv_module(f"{_AUXILIARY}.convs.{{i}}", f"{_AUXILIARY}.convs.{{i}}"),
    *conv(f"{_AUXILIARY}.conv_seg", f"{_AUXILIARY}.conv_seg"),
    head=(f"{_DECODE}.conv_seg.", f"{_AUXILIARY}.conv_seg."),
)
