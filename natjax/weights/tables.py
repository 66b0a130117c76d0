"""The tables of names: official, Hugging Face, natjax.

Detectors and segmentors (mmdet, mmseg, Mask2Former) and training checkpoints use the official names
behind prefixes and inside containers, which `natjax.weights.state_dict` takes off.
"""

from __future__ import annotations

from natjax.weights.layouts import CONV, LINEAR, QKV_BIAS, QKV_KERNEL, ROWS, SAME
from natjax.weights.naming import ROOT, Naming, Rule


def _norm(theirs: str, ours: str) -> tuple[Rule, ...]:
    return (
        Rule((f"{theirs}.weight",), (f"{ours}.scale",), SAME),
        Rule((f"{theirs}.bias",), (f"{ours}.bias",), SAME),
    )


def _linear(theirs: str, ours: str) -> tuple[Rule, ...]:
    return (
        Rule((f"{theirs}.weight",), (f"{ours}.kernel",), LINEAR),
        Rule((f"{theirs}.bias",), (f"{ours}.bias",), SAME),
    )


def _conv(theirs: str, ours: str) -> tuple[Rule, ...]:
    return (
        Rule((f"{theirs}.weight",), (f"{ours}.kernel",), CONV),
        Rule((f"{theirs}.bias",), (f"{ours}.bias",), SAME),
    )


def _block(at: str) -> tuple[Rule, ...]:
    return (
        *_norm(f"{at}.norm1", f"{at}.norm1"),
        *_linear(f"{at}.attn.qkv", f"{at}.attn.qkv"),
        Rule((f"{at}.attn.rpb",), (f"{at}.attn.rpb",), SAME),
        *_linear(f"{at}.attn.proj", f"{at}.attn.proj"),
        *_norm(f"{at}.norm2", f"{at}.norm2"),
        *_linear(f"{at}.mlp.fc1", f"{at}.mlp.fc1"),
        *_linear(f"{at}.mlp.fc2", f"{at}.mlp.fc2"),
        Rule((f"{at}.gamma1",), (f"{at}.gamma1",), SAME),
        Rule((f"{at}.gamma2",), (f"{at}.gamma2",), SAME),
    )


_OVERLAPPING = (  # NAT, DiNAT
    *_conv("patch_embed.proj.{n}", "patch_embed.proj.{n}"),
    *_block("levels.{i}.blocks.{j}"),
    *_conv("levels.{i}.downsample.reduction", "levels.{i}.downsample.reduction"),
    *_norm("levels.{i}.downsample.norm", "levels.{i}.downsample.norm"),
)
_PATCHES = (  # DiNAT_s and the isotropic models
    *_conv("patch_embed.proj", "patch_embed.proj"),
    *_block("layers.{i}.blocks.{j}"),
    *_linear("layers.{i}.downsample.reduction", "layers.{i}.downsample.reduction"),
    *_norm("layers.{i}.downsample.norm", "layers.{i}.downsample.norm"),
    *_block("layers.{j}"),
)

OFFICIAL = Naming(
    name="official",
    marker="patch_embed.norm.weight",
    rules=(
        *_norm("patch_embed.norm", "patch_embed.norm"),
        *_OVERLAPPING,
        *_PATCHES,
        *_norm("norm", "norm"),
        *_norm("norm{i}", "norm{i}"),  # of a detector's or segmentor's backbone
        *_linear("head", "head"),
    ),
    # Indices into the bias of ViT-RPB, which follow from its size.
    buffers=(".attn.relative_position_index",),
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
        *_norm(f"{ROOT}embeddings.norm", "patch_embed.norm"),
        *_conv(f"{ROOT}embeddings.patch_embeddings.projection.{{n}}", "patch_embed.proj.{n}"),
        *_norm(f"{_HF_LAYER}.layernorm_before", f"{_BLOCK}.norm1"),
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
        *_linear(f"{_HF_LAYER}.attention.output.dense", f"{_BLOCK}.attn.proj"),
        *_norm(f"{_HF_LAYER}.layernorm_after", f"{_BLOCK}.norm2"),
        *_linear(f"{_HF_LAYER}.intermediate.dense", f"{_BLOCK}.mlp.fc1"),
        *_linear(f"{_HF_LAYER}.output.dense", f"{_BLOCK}.mlp.fc2"),
        Rule(
            (f"{_HF_LAYER}.layer_scale_parameters",),
            (f"{_BLOCK}.gamma1", f"{_BLOCK}.gamma2"),
            ROWS,
        ),
        *_conv(
            f"{ROOT}encoder.levels.{{i}}.downsample.reduction", "levels.{i}.downsample.reduction"
        ),
        *_norm(f"{ROOT}encoder.levels.{{i}}.downsample.norm", "levels.{i}.downsample.norm"),
        *_norm(f"{ROOT}layernorm", "norm"),
        *_norm(f"{ROOT}hidden_states_norms.stage{{i+1}}", "norm{i}"),
        *_linear("classifier", "head"),
    ),
)

# Our own: whatever the official table calls ours, under its own name.
NATJAX = Naming(
    name="natjax",
    marker="patch_embed.norm.scale",
    rules=tuple(Rule(rule.ours, rule.ours, SAME) for rule in OFFICIAL.rules),
)

NAMINGS = {naming.name: naming for naming in (NATJAX, OFFICIAL, HUGGING_FACE)}
