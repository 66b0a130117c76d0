"""The shape of a detector, and what its training and inference count."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Literal

from natjax.backbones.nat import NATConfig
from natjax.dense.ops.assign import MaxIoUAssigner
from natjax.nn import arguments as checks

if TYPE_CHECKING:
    from natjax.weights.names import Naming


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProposalConfig:
    """How many anchors become proposals.

    Attributes:
      per_level: anchors of a level that are looked at, those with the highest scores.
      kept: proposals of an image.
      iou_threshold: of suppression within a level.
    """

    per_level: int
    kept: int
    iou_threshold: float = 0.7

    def __post_init__(self) -> None:
        checks.check_size("per_level", self.per_level)
        checks.check_size("kept", self.kept)
        checks.check_rate("iou_threshold", self.iou_threshold)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """How many boxes of an image are trained on.

    Attributes:
      number: of boxes.
      positive_fraction: the largest share of them that belongs to objects.
    """

    number: int
    positive_fraction: float

    def __post_init__(self) -> None:
        checks.check_size("number", self.number)
        if not 1 <= self.positives <= self.number:
            raise ValueError(
                "positive_fraction must be at most 1, and allow one positive box; got"
                f" {self.positive_fraction} of {self.number}"
            )

    @property
    def positives(self) -> int:
        """The largest number of boxes that belong to objects."""
        return int(self.number * self.positive_fraction)


# Every object gets the anchor that fits it best, and those that fit well.
_ANCHOR_ASSIGNER = MaxIoUAssigner(
    positive_iou=0.7, negative_iou=0.3, match_low_quality=True, lowest_iou=0.3
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RPNConfig:
    """The region proposal network, which finds boxes of anything.

    Attributes:
      scale: side of an anchor in units of the stride of its level.
      ratios: of height to width of the anchors of a cell.
      border: pixels that an anchor may reach beyond the image to be trained on; None is any number.
      assigner: what an anchor is trained for.
      sampler: which anchors are trained on.
      smooth_l1: below this distance the loss of a delta is quadratic; 0 is L1.
      training: proposals in training.
      inference: proposals in inference.
    """

    scale: float = 8.0
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    border: float | None = None
    assigner: MaxIoUAssigner = _ANCHOR_ASSIGNER
    sampler: SamplerConfig = SamplerConfig(number=256, positive_fraction=0.5)
    smooth_l1: float = 0.0
    training: ProposalConfig = ProposalConfig(per_level=2000, kept=1000)
    inference: ProposalConfig = ProposalConfig(per_level=1000, kept=1000)

    def __post_init__(self) -> None:
        if not self.scale > 0 or not self.ratios or not min(self.ratios) > 0:
            raise ValueError(
                f"scale and ratios must be positive; got {self.scale} and {self.ratios}"
            )
        if not self.smooth_l1 >= 0:
            raise ValueError(f"smooth_l1 must not be negative; got {self.smooth_l1}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BoxHeadConfig:
    """The head that gives a box its class and its final corners.

    Attributes:
      convs: 3x3 convolutions with batch normalisation, before the linear layers.
      conv_channels: of these.
      linears: hidden linear layers.
      linear_channels: of these.
      loss: of the corners. ``"l1"`` is of the deltas, ``"giou"`` of the decoded boxes.
      loss_weight: of the loss of the corners.
    """

    convs: int = 0
    conv_channels: int = 256
    linears: int = 2
    linear_channels: int = 1024
    loss: Literal["l1", "giou"] = "l1"
    loss_weight: float = 1.0

    def __post_init__(self) -> None:
        for name in ("convs", "linears"):
            checks.check_size(name, getattr(self, name), at_least=0)
        for name in ("conv_channels", "linear_channels"):
            checks.check_size(name, getattr(self, name))
        if self.loss not in ("l1", "giou"):
            raise ValueError(f"loss must be 'l1' or 'giou'; got {self.loss!r}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageConfig:
    """A stage of refinement, with heads of its own.

    Attributes:
      assigner: what a proposal is trained for.
      stds: typical sizes of the deltas (x, y, width, height).
      loss_weight: of all losses of the stage.
    """

    assigner: MaxIoUAssigner
    stds: tuple[float, float, float, float] = (0.1, 0.1, 0.2, 0.2)
    loss_weight: float = 1.0

    def __post_init__(self) -> None:
        if len(self.stds) != 4 or not min(self.stds) > 0:
            raise ValueError(f"stds must be four positive numbers; got {self.stds!r}")


# The stage of Mask R-CNN, and the three of Cascade Mask R-CNN: boxes get better, so the overlap
# that counts as a hit grows, and what is left to correct shrinks.
SINGLE_STAGE = (
    StageConfig(
        assigner=MaxIoUAssigner(
            positive_iou=0.5, negative_iou=0.5, match_low_quality=True, lowest_iou=0.5
        )
    ),
)
CASCADE_STAGES = tuple(
    StageConfig(
        assigner=MaxIoUAssigner(positive_iou=iou, negative_iou=iou), stds=stds, loss_weight=weight
    )
    for iou, stds, weight in (
        (0.5, (0.1, 0.1, 0.2, 0.2), 1.0),
        (0.6, (0.05, 0.05, 0.1, 0.1), 0.5),
        (0.7, (0.033, 0.033, 0.067, 0.067), 0.25),
    )
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskRCNNConfig:
    """Shape of a Mask R-CNN, or with several stages of a Cascade Mask R-CNN.

    Attributes:
      backbone: config of the backbone, with four levels, ``output_norms=True`` and
        ``num_classes=0``; or the channels of the four maps, at strides 4, 8, 16 and 32, of a
        backbone of one's own.
      num_classes: classes of objects.
      channels: of the pyramid and of the region proposal network.
      rpn: the region proposal network.
      stages: of the heads; one or more.
      box_head: the head for boxes.
      mask_channels: of the head for masks.
      sampler: which proposals the heads are trained on.
      score_threshold: a detection's score exceeds it.
      iou_threshold: of suppression within a class.
      max_detections: of an image.
      size_divisor: each image counts as padded to multiples of this.
      summary_size: height and width of the images that the papers quote FLOPs for.
    """

    backbone: NATConfig | tuple[int, ...]
    num_classes: int = 80
    channels: int = 256
    rpn: RPNConfig = RPNConfig()
    stages: tuple[StageConfig, ...] = SINGLE_STAGE
    box_head: BoxHeadConfig = BoxHeadConfig()
    mask_channels: int = 256
    sampler: SamplerConfig = SamplerConfig(number=512, positive_fraction=0.25)
    score_threshold: float = 0.05
    iou_threshold: float = 0.5
    max_detections: int = 100
    size_divisor: int = 32
    summary_size: tuple[int, int] = (800, 1280)

    def __post_init__(self) -> None:
        _check_backbone(self.backbone)
        for name in ("num_classes", "channels", "mask_channels", "max_detections", "size_divisor"):
            checks.check_size(name, getattr(self, name))
        if not self.stages:
            raise ValueError("stages must hold at least one stage; got none")
        for name in ("score_threshold", "iou_threshold"):
            checks.check_rate(name, getattr(self, name))

    def namings(self) -> tuple[Naming, ...]:
        """Tables of the names that weights of such a detector have elsewhere.

        Raises:
          WeightsError: the backbone is one of one's own.
        """
        from natjax.dense.detection.names import mmdet_naming
        from natjax.weights.untrusted import WeightsError

        if not isinstance(self.backbone, NATConfig):
            raise WeightsError(
                "a detector with a backbone of one's own has no table of names; save its"
                " flax.nnx.state"
            )
        return (mmdet_naming(len(self.stages)),)

    @property
    def levels(self) -> tuple[int, ...]:
        """Channels of each map of the backbone."""
        if isinstance(self.backbone, NATConfig):
            return self.backbone.channels
        return self.backbone

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels between two positions, of each level of the pyramid."""
        return (4, 8, 16, 32, 64)


def _check_backbone(backbone: NATConfig | tuple[int, ...]) -> None:
    if not isinstance(backbone, NATConfig):
        checks.check_sizes("backbone", backbone, 4, "map")
        return
    if len(backbone.depths) != 4:
        raise ValueError(
            f"backbone must have four levels, at strides 4 to 32; got {len(backbone.depths)}"
        )
    if backbone.num_classes or not backbone.output_norms:
        raise ValueError(
            "backbone must have output_norms=True and num_classes=0; got "
            f"{backbone.output_norms} and {backbone.num_classes}"
        )
