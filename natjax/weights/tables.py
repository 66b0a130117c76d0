"""The tables of names of the backbones: official, Hugging Face, natjax.

Detectors and segmentors (mmdet, mmseg, Mask2Former) and training checkpoints use the official names
behind prefixes and inside containers, which `natjax.weights.state_dict` takes off.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from flax import nnx

from natjax.backbones.base import VisionModel
from natjax.backbones.isotropic import IsotropicConfig
from natjax.weights.names import (
    CONV,
    COUNT,
    LINEAR,
    QKV_BIAS,
    QKV_KERNEL,
    ROOT,
    ROWS,
    SAME,
    Buffer,
    Layout,
    Naming,
    Rule,
    Shape,
)
from natjax.weights.untrusted import WeightsError


def weight_and_bias(
    theirs: str, ours: str, layout: Layout, weight: str = "kernel"
) -> tuple[Rule, ...]:
    """Rules of a layer with a weight and a bias; a bias that a model lacks is of no matter.

    Args:
      theirs: name of the layer in the source.
      ours: name of the layer here.
      layout: of the weight.
      weight: what the weight is called here.
    """
    return (
        Rule((f"{theirs}.weight",), (f"{ours}.{weight}",), layout),
        Rule((f"{theirs}.bias",), (f"{ours}.bias",), SAME),
    )


def norm(theirs: str, ours: str) -> tuple[Rule, ...]:
    """Rules of a normalisation; arguments as for `weight_and_bias`."""
    return weight_and_bias(theirs, ours, SAME, "scale")


def linear(theirs: str, ours: str) -> tuple[Rule, ...]:
    """Rules of a linear layer; arguments as for `weight_and_bias`."""
    return weight_and_bias(theirs, ours, LINEAR)


def conv(theirs: str, ours: str) -> tuple[Rule, ...]:
    """Rules of a two-dimensional convolution; arguments as for `weight_and_bias`."""
    return weight_and_bias(theirs, ours, CONV)


def batch_norm(theirs: str, ours: str) -> tuple[Rule, ...]:
    """Rules of a batch norm with its running statistics; arguments as for `weight_and_bias`."""
    return (
        *norm(theirs, ours),
        Rule((f"{theirs}.running_mean",), (f"{ours}.mean",), SAME),
        Rule((f"{theirs}.running_var",), (f"{ours}.var",), SAME),
        Rule((f"{theirs}.num_batches_tracked",), (f"{ours}.num_batches",), COUNT),
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


# Indices into the bias of ViT-RPB, which follow from its size. Written for that model alone.
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

# Our own: whatever the official table calls ours, under its own name.
NATJAX = OFFICIAL.of_ours()

NAMINGS = {naming.name: naming for naming in (NATJAX, OFFICIAL, HUGGING_FACE)}


def namings_of(model: nnx.Module) -> Mapping[str, Naming]:
    """The tables of names that a model's weights may have, by name.

    A module offers its own by a method ``namings()`` that returns a sequence of `Naming`. Natjax's
    own names follow from the first of them.

    Args:
      model: a backbone of natjax, or any module.

    Raises:
      WeightsError: the module offers none.
    """
    if isinstance(model, VisionModel):
        return NAMINGS
    offered = getattr(model, "namings", None)
    if offered is None:
        raise WeightsError(
            f"a {type(model).__name__} has no names that weights could have: it must be a model of"
            " natjax, or have a method namings() (natjax.weights.tables.namings_of)"
        )
    tables = tuple(offered())
    return {naming.name: naming for naming in (tables[0].of_ours(), *tables)}


def naming_of(config: object, name: str) -> Naming:
    """The table by which the weights of a backbone are written.

    Args:
      config: of the backbone.
      name: of the naming.
    """
    naming = NAMINGS[name]
    if name == OFFICIAL.name and has_pair_index(config):
        return naming.joined(buffers=(Buffer(_PAIR_INDEX, ".attn.rpb", pair_index),))
    return naming


def has_pair_index(config: object) -> bool:
    """Whether the official model of a config keeps `pair_index` in its state dict."""
    return isinstance(config, IsotropicConfig) and config.kernel_size is None
