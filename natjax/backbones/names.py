"""Names of the backbones' weights: official, and Hugging Face's.

Detectors and segmentors (mmdet, mmseg, Mask2Former) and training checkpoints use the official names
behind prefixes and inside containers, which `natjax.weights.state_dict` takes off.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from natjax.backbones.isotropic import IsotropicConfig
from natjax.backbones.nat import NATConfig
from natjax.weights.names import (
    QKV_BIAS,
    QKV_KERNEL,
    ROOT,
    ROWS,
    SAME,
    Buffer,
    Naming,
    Rule,
    Shape,
    by_name,
    conv,
    linear,
    norm,
)


def _block(at: str) -> tuple[Rule, ...]:
    return (
        *norm(f"{at}.norm1", f"{at}.norm1"),
        *linear(f"{at}.attn.qkv", f"{at}.attn.qkv"),
        Rule((f"{at}.attn.rpb",), (f"{at}.attn.rpb",), SAME),
        *linear(f"{at}.attn.proj", f"{at}.attn.proj"),
        *norm(f"{at}.norm2", f"{at}.norm2"),
        *linear(f"{at}.mlp.fc1", f"{at}.mlp.fc1"),
        *linear(f"{at}.mlp.fc2", f"{at}.mlp.fc2"),
        Rule((f"{at}.gamma1",), (f"{at}.gamma1",), SAME),
        Rule((f"{at}.gamma2",), (f"{at}.gamma2",), SAME),
    )


_OVERLAPPING = (  # NAT, DiNAT
    *conv("patch_embed.proj.{n}", "patch_embed.proj.{n}"),
    *_block("levels.{i}.blocks.{j}"),
    *conv("levels.{i}.downsample.reduction", "levels.{i}.downsample.reduction"),
    *norm("levels.{i}.downsample.norm", "levels.{i}.downsample.norm"),
)
_PATCHES = (  # DiNAT_s and the isotropic models
    *conv("patch_embed.proj", "patch_embed.proj"),
    *_block("layers.{i}.blocks.{j}"),
    *linear("layers.{i}.downsample.reduction", "layers.{i}.downsample.reduction"),
    *norm("layers.{i}.downsample.norm", "layers.{i}.downsample.norm"),
    *_block("layers.{j}"),
)


def pair_index(rpb: Shape) -> np.ndarray:
    """Where the bias of each pair of tokens is in the flattened table of global attention.

    Entry ``[query, key]`` is the place of the pair's bias: row and column distance, key minus
    query, counted from the least.

    Args:
      rpb: shape of the table, ``(heads, 2 * side - 1, 2 * side - 1)``.
    """
    side = (rpb[1] + 1) // 2
    places = np.stack(np.divmod(np.arange(side**2), side))
    distance = places[:, None, :] - places[:, :, None] + side - 1
    index = distance[0] * (2 * side - 1) + distance[1]
    return index.astype(np.int64)


# Indices into the bias of ViT-RPB, which follow from its size.
_PAIR_INDEX = ".attn.relative_position_index"

OFFICIAL = Naming(
    name="official",
    marker="patch_embed.norm.weight",
    rules=(
        *norm("patch_embed.norm", "patch_embed.norm"),
        *_OVERLAPPING,
        *_PATCHES,
        *norm("norm", "norm"),
        *norm("norm{i}", "norm{i}"),  # of a detector's or segmentor's backbone
        *linear("head", "head"),
    ),
    buffers=(Buffer(_PAIR_INDEX),),
)

_HF_LAYER = f"{ROOT}encoder.levels.{{i}}.layers.{{j}}"
_HF_SELF = f"{_HF_LAYER}.attention.self"
_BLOCK = "levels.{i}.blocks.{j}"
_QKV = ("query", "key", "value")

# transformers' NAT and DiNAT (it has no other model): NatModel, NatForImageClassification and
# NatBackbone.
HUGGING_FACE = Naming(
    name="hf",
    marker="embeddings.norm.weight",
    roots=("nat.", "dinat.", ""),
    rules=(
        *norm(f"{ROOT}embeddings.norm", "patch_embed.norm"),
        *conv(f"{ROOT}embeddings.patch_embeddings.projection.{{n}}", "patch_embed.proj.{n}"),
        *norm(f"{_HF_LAYER}.layernorm_before", f"{_BLOCK}.norm1"),
        Rule(
            tuple(f"{_HF_SELF}.{part}.weight" for part in _QKV),
            (f"{_BLOCK}.attn.qkv.kernel",),
            QKV_KERNEL,
        ),
        Rule(
            tuple(f"{_HF_SELF}.{part}.bias" for part in _QKV),
            (f"{_BLOCK}.attn.qkv.bias",),
            QKV_BIAS,
        ),
        Rule((f"{_HF_SELF}.rpb",), (f"{_BLOCK}.attn.rpb",), SAME),
        *linear(f"{_HF_LAYER}.attention.output.dense", f"{_BLOCK}.attn.proj"),
        *norm(f"{_HF_LAYER}.layernorm_after", f"{_BLOCK}.norm2"),
        *linear(f"{_HF_LAYER}.intermediate.dense", f"{_BLOCK}.mlp.fc1"),
        *linear(f"{_HF_LAYER}.output.dense", f"{_BLOCK}.mlp.fc2"),
        Rule(
            (f"{_HF_LAYER}.layer_scale_parameters",),
            (f"{_BLOCK}.gamma1", f"{_BLOCK}.gamma2"),
            ROWS,
        ),
        *conv(
            f"{ROOT}encoder.levels.{{i}}.downsample.reduction", "levels.{i}.downsample.reduction"
        ),
        *norm(f"{ROOT}encoder.levels.{{i}}.downsample.norm", "levels.{i}.downsample.norm"),
        *norm(f"{ROOT}layernorm", "norm"),
        *norm(f"{ROOT}hidden_states_norms.stage{{i+1}}", "norm{i}"),
        *linear("classifier", "head"),
    ),
)

# Of the backbones alone; a file is told apart by these where nobody says what it is of.
BACKBONE = tuple(by_name((OFFICIAL, HUGGING_FACE)).values())


def backbone_namings(config: NATConfig | IsotropicConfig) -> tuple[Naming, ...]:
    """The tables of names for the weights of one model.

    The official ViT-RPB keeps an index table in its state dict, which is written and not read.
    Hugging Face puts the family before the keys of a classifier, and has no other models.

    Args:
      config: of the model.
    """
    official = OFFICIAL
    if isinstance(config, IsotropicConfig) and config.kernel_size is None:
        official = OFFICIAL.joined(buffers=(Buffer(_PAIR_INDEX, ".attn.rpb", pair_index),))
    if isinstance(config, IsotropicConfig) or not config.num_classes:
        return official, HUGGING_FACE
    dilated = any(dilation > 1 for level in config.dilations for dilation in level)
    refusal = (
        "Hugging Face has no model with classifier and output norms; make it with num_classes=0, or"
        " with output_norms=False"
    )
    return official, dataclasses.replace(
        HUGGING_FACE,
        root="dinat." if dilated else "nat.",
        refusal=refusal if config.output_norms else "",
    )
