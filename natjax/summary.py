"""Size and cost of a model, without running it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
from flax import nnx

from natjax.backbones.flops import Size
from natjax.backbones.flops import count_flops as count_backbone_flops
from natjax.dense.detection.config import MaskRCNNConfig
from natjax.dense.detection.flops import count_detector_flops
from natjax.dense.segmentation.flops import count_upernet_flops
from natjax.dense.segmentation.upernet import UPerNetConfig
from natjax.kernels.checks import axis_ints
from natjax.registry import Config, Kind, Model, abstract, find_config, kind_of

_KINDS: dict[type, Kind] = {UPerNetConfig: "segmentor", MaskRCNNConfig: "detector"}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ModelSummary:
    """Size and cost of a model.

    Attributes:
      name: of the model; of one at hand, its class.
      kind: ``"classifier"``, ``"segmentor"`` or ``"detector"``.
      parameters: number of scalar parameters, those that serve training alone included.
      flops: multiply-adds of one image's forward pass, as in the papers.
      image_size: height and width that ``flops`` are for.
    """

    name: str
    kind: Kind
    parameters: int
    flops: int
    image_size: Size


def model_summary(
    model: str | Model, image_size: int | Sequence[int] | None = None
) -> ModelSummary:
    """Parameters and FLOPs of a published model, or of one at hand.

    FLOPs follow the papers: a multiply-add is one; LayerNorm is five per element, BatchNorm two;
    bilinear interpolation is four; neighborhood attention is its two products and one per bias
    added; softmax, activations, residuals and pooling are free; what is computed on padding counts.
    Of a segmentor they are those of inference, up to logits of every pixel. Of a detector, those of
    1000 proposals and 100 masks, RoIAlign and suppression left out.

    Args:
      model: one of `natjax.list_models`, or a model of natjax.
      image_size: height and width, or both at once; None is the model's own, for segmentors and
        detectors what the papers quote.

    Raises:
      ValueError: an unknown name, or a size that is not positive or that the model cannot take.

    >>> import natjax
    >>> summary = natjax.model_summary("nat_tiny")
    >>> summary.parameters, round(summary.flops / 1e9, 1)
    (27901582, 4.3)
    >>> summary = natjax.model_summary("upernet_nat_tiny")
    >>> summary.parameters, round(summary.flops / 1e9), summary.image_size
    (57697106, 934, (512, 2048))
    """
    if isinstance(model, str):
        name, config, kind = model, find_config(model), kind_of(model)
    else:
        name, config = type(model).__name__, model.config
        kind = _KINDS.get(type(config), "classifier")
    size = _own_size(config) if image_size is None else _image_size(image_size)
    return ModelSummary(
        name=name,
        kind=kind,
        parameters=count_parameters(config),
        flops=count_flops(config, size),
        image_size=size,
    )


def count_parameters(config: Config) -> int:
    """Number of scalar parameters of the model of a config."""
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(abstract(config), nnx.Param)))


def count_flops(config: Config, image_size: Size) -> int:
    """Multiply-adds of one image's logits or detections, counted as in `model_summary`.

    Args:
      config: the shape of the model.
      image_size: height and width.

    Raises:
      ValueError: a size that a model with global attention cannot take.
    """
    if isinstance(config, UPerNetConfig):
        return count_upernet_flops(config, image_size)
    if isinstance(config, MaskRCNNConfig):
        return count_detector_flops(config, image_size)
    return count_backbone_flops(config, image_size)


def _own_size(config: Config) -> Size:
    if isinstance(config, UPerNetConfig | MaskRCNNConfig):
        return config.summary_size
    return config.input_size, config.input_size


def _image_size(image_size: int | Sequence[int]) -> Size:
    """Height and width from one int or two."""
    height, width = axis_ints("image_size", image_size, 2)
    return height, width
