"""What the weights of detectors are called in files of mmdetection."""

from __future__ import annotations

from natjax.backbones.names import OFFICIAL
from natjax.weights.names import (
    Naming,
    Rule,
    batch_norm,
    conv,
    linear,
    permuted,
    weight_and_bias,
)

# A transposed convolution: [in, out, height, width] and [height, width, in, out].
_TRANSPOSED_CONV = permuted("IOHW to HWIO", (2, 3, 0, 1))


def _heads(stage: str) -> tuple[Rule, ...]:
    """Rules of the heads of a stage; ``stage`` is ``""`` where there is one alone."""
    boxes, masks = f"roi_head.bbox_head{stage}", f"roi_head.mask_head{stage}"
    return (
        *conv(f"{boxes}.shared_convs.{{i}}.conv", f"{boxes}.shared_convs.{{i}}.conv"),
        *batch_norm(f"{boxes}.shared_convs.{{i}}.bn", f"{boxes}.shared_convs.{{i}}.bn"),
        *linear(f"{boxes}.shared_fcs.{{i}}", f"{boxes}.shared_fcs.{{i}}"),
        *linear(f"{boxes}.fc_cls", f"{boxes}.fc_cls"),
        *linear(f"{boxes}.fc_reg", f"{boxes}.fc_reg"),
        *conv(f"{masks}.convs.{{i}}.conv", f"{masks}.convs.{{i}}.conv"),
        *weight_and_bias(f"{masks}.upsample", f"{masks}.upsample", _TRANSPOSED_CONV),
        *conv(f"{masks}.conv_logits", f"{masks}.conv_logits"),
    )


_PROPOSALS = (
    *conv("neck.lateral_convs.{i}.conv", "neck.lateral_convs.{i}.conv"),
    *conv("neck.fpn_convs.{i}.conv", "neck.fpn_convs.{i}.conv"),
    *conv("rpn_head.rpn_conv", "rpn_head.rpn_conv"),
    *conv("rpn_head.rpn_cls", "rpn_head.rpn_cls"),
    *conv("rpn_head.rpn_reg", "rpn_head.rpn_reg"),
)


def mmdet_naming(stages: int) -> Naming:
    """The names in mmdetection's files of a detector with so many stages.

    The layers that depend on the classes count as the head, which can be left out of loading.
    """
    places = ("",) if stages == 1 else tuple(f".{i}" for i in range(stages))
    layers = ("bbox_head{}.fc_cls.", "bbox_head{}.fc_reg.", "mask_head{}.conv_logits.")
    return OFFICIAL.under("backbone.", "backbone.").joined(
        *_PROPOSALS,
        *_heads("" if stages == 1 else ".{s}"),
        marker=f"roi_head.mask_head{places[0]}.upsample.weight",
        head=tuple(f"roi_head.{layer.format(place)}" for layer in layers for place in places),
        classes=f"roi_head.mask_head{places[0]}.conv_logits.bias",
    )
