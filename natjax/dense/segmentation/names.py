"""Names of a UPerNet's weights in the files of mmsegmentation."""

from __future__ import annotations

from natjax.backbones.names import OFFICIAL
from natjax.weights.names import Rule, batch_norm, conv


def _conv_module(theirs: str, ours: str) -> tuple[Rule, ...]:
    return (*conv(f"{theirs}.conv", f"{ours}.conv"), *batch_norm(f"{theirs}.bn", f"{ours}.bn"))


_DECODE, _AUXILIARY = "decode_head", "auxiliary_head"

UPERNET = OFFICIAL.under("backbone.", "backbone.").joined(
    # Their branches of pyramid pooling are the pooling, 0, and the convolution, 1.
    *_conv_module(f"{_DECODE}.psp_modules.{{i}}.1", f"{_DECODE}.psp_modules.{{i}}"),
    *_conv_module(f"{_DECODE}.bottleneck", f"{_DECODE}.bottleneck"),
    *_conv_module(f"{_DECODE}.lateral_convs.{{i}}", f"{_DECODE}.lateral_convs.{{i}}"),
    *_conv_module(f"{_DECODE}.fpn_convs.{{i}}", f"{_DECODE}.fpn_convs.{{i}}"),
    *_conv_module(f"{_DECODE}.fpn_bottleneck", f"{_DECODE}.fpn_bottleneck"),
    *conv(f"{_DECODE}.conv_seg", f"{_DECODE}.conv_seg"),
    *_conv_module(f"{_AUXILIARY}.convs.{{i}}", f"{_AUXILIARY}.convs.{{i}}"),
    *conv(f"{_AUXILIARY}.conv_seg", f"{_AUXILIARY}.conv_seg"),
    marker=f"{_DECODE}.fpn_bottleneck.conv.weight",
    head=(f"{_DECODE}.conv_seg.", f"{_AUXILIARY}.conv_seg."),
    classes=f"{_DECODE}.conv_seg.bias",
)
