"""Mask R-CNN and Cascade Mask R-CNN: backbone, pyramid, proposals, heads.

References:
  He et al., *Mask R-CNN*, ICCV 2017.
  Cai and Vasconcelos, *Cascade R-CNN*, CVPR 2018.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key

from natjax.backbones.nat import NAT, NATConfig
from natjax.dense.detection import losses as loss
from natjax.dense.detection.config import MaskRCNNConfig
from natjax.dense.detection.fpn import FPN
from natjax.dense.detection.losses import Sum
from natjax.dense.detection.roi_head import RoIHead
from natjax.dense.detection.rpn import (
    Anchors,
    Proposals,
    RPNHead,
    make_anchors,
    propose,
    rpn_losses,
    rpn_targets,
)
from natjax.dense.detection.targets import Regions, Truth, usable
from natjax.dense.ops.sample import Subset, random_subset
from natjax.kernels.api import Implementation
from natjax.kernels.checks import accumulation_dtype
from natjax.nn.mode import HasSummary

if TYPE_CHECKING:
    from natjax.weights.names import Naming


class Instances(NamedTuple):
    """What a detector finds, in descending order of score.

    Attributes:
      boxes: corners, in pixels of the original images.
      scores: probabilities.
      labels: classes.
      masks: probabilities on a grid in each box; `natjax.dense.ops.masks.paste_masks` makes pixels
        of them.
      valid: whether an entry is an object.
    """

    boxes: Float[Array, "B K 4"]
    scores: Float[Array, "B K"]
    labels: Int[Array, "B K"]
    masks: Float[Array, "B K M M"]
    valid: Bool[Array, "B K"]


class MaskRCNN(HasSummary, nnx.Module):
    """Detect objects and their masks.

    Images of a batch have any sizes and are zero padded on the right and at the bottom to the same.
    As in the published models, the backbone sees the padding, so that features near it change with
    its width; boxes are clipped to the image without it.

    Args:
      config: the shape of the model.
      backbone: a module whose ``features(images, rngs)`` gives maps with the channels that
        ``config.backbone`` names, at strides 4, 8, 16 and 32 (sizes rounded up); None makes the one
        that ``config.backbone`` describes.
      dtype: dtype of the computation; None is ``param_dtype``. Boxes, scores and losses are float32
        at least.
      param_dtype: dtype of the parameters.
      remat: whether the backward pass recomputes each block of the backbone.
      implementation: of the attention op, as in `natjax.na2d`.
      rngs: stream ``params`` (or the default one) draws the initial parameters.

    Raises:
      ValueError: ``config.backbone`` names channels, and there is no ``backbone``.
    """

    def __init__(
        self,
        config: MaskRCNNConfig,
        backbone: nnx.Module | None = None,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        remat: bool = False,
        implementation: Implementation | None = None,
        rngs: nnx.Rngs,
    ):
        options = {"dtype": dtype or param_dtype, "param_dtype": param_dtype, "rngs": rngs}
        if backbone is None:
            if not isinstance(config.backbone, NATConfig):
                raise ValueError(
                    "backbone must be given where config.backbone is not a NATConfig; got"
                    f" {config.backbone!r}"
                )
            backbone = NAT(config.backbone, remat=remat, implementation=implementation, **options)
        self.config = config
        self.backbone = backbone
        self.neck = FPN(config.levels, config.channels, **options)
        self.rpn_head = RPNHead(config.channels, len(config.rpn.ratios), **options)
        self.roi_head = RoIHead(config, **options)

    def namings(self) -> tuple[Naming, ...]:
        """Tables of the names of its weights, for `natjax.load_weights` and `natjax.save_weights`.

        Raises:
          WeightsError: the backbone is one of one's own.
        """
        return self.config.namings()

    def pyramid(
        self, images: Float[Array, "B H W I"], rngs: nnx.Rngs | None = None
    ) -> list[Float[Array, "B _Hi _Wi C"]]:
        """Maps at strides 4, 8, 16, 32 and 64.

        Args:
          images: normalised images.
          rngs: streams ``droppath`` and ``dropout`` of a training step; None means evaluation.
        """
        return self.neck(self.backbone.features(images, rngs))

    def anchors(self, pyramid: Sequence[Float[Array, "B _H _W C"]]) -> Anchors:
        """The anchors of a pyramid."""
        sizes = [x.shape[1:3] for x in pyramid]
        anchors = make_anchors(sizes, self.config.strides, self.config.rpn)
        exact = accumulation_dtype(pyramid[0].dtype)
        return anchors._replace(boxes=anchors.boxes.astype(exact))

    def __call__(
        self,
        images: Float[Array, "B H W I"],
        sizes: Float[Array, "B 2"] | Int[Array, "B 2"] | None = None,
        *,
        scales: Float[Array, "B 2"] | None = None,
    ) -> Instances:
        """Detect objects.

        Args:
          images: normalised images, zero padded to the same size.
          sizes: height and width of each image without padding; None is without padding.
          scales: what height and width of the original images were multiplied by to make these;
            None is 1.

        Returns:
          Objects, in pixels of the original images.

        Raises:
          ValueError: images of another rank, dtype or number of channels.
        """
        sizes, scales = _sizes(images, sizes), _scales(images, scales)
        pyramid = self.pyramid(images)
        scores, deltas = self.rpn_head(pyramid)
        anchors = self.anchors(pyramid)
        proposals = propose(scores, deltas, anchors, sizes, self.config.rpn.inference)
        found, masks = self.roi_head.detect(pyramid, _regions(proposals), sizes, scales)
        return Instances(found.boxes, found.scores, found.labels, masks, found.valid)

    def losses(
        self,
        images: Float[Array, "B H W I"],
        sizes: Float[Array, "B 2"] | Int[Array, "B 2"],
        truth: Truth,
        *,
        keys: Key[Array, "B"],
        rngs: nnx.Rngs | None = None,
        subset: Subset = random_subset,
    ) -> tuple[dict[str, Sum], dict[str, Sum]]:
        """The losses of a training step; norms of the heads update their running statistics.

        Objects without area are left out, and images without objects are all background.

        Args:
          images: normalised images, zero padded to the same size.
          sizes: height and width of each image without padding.
          truth: the objects, with masks of the padded size.
          keys: a random key for each image, from which its boxes are sampled.
          rngs: streams ``droppath`` and ``dropout`` of the backbone; None switches these off.
          subset: chooses the samples.

        Returns:
          By name, the losses and what else there is to log (accuracies, and shares of the sampled
          boxes that belong to objects), each as a sum and what it is to be divided by.
          `natjax.dense.detection.losses.mean_loss` of the losses is minimised.

        Raises:
          ValueError: images of another rank, dtype or number of channels; masks of another size.
        """
        _check_truth(images, truth)
        config, truth, sizes = self.config, usable(truth), _sizes(images, sizes)
        pyramid = self.pyramid(images, rngs)
        scores, deltas = self.rpn_head(pyramid)
        anchors = self.anchors(pyramid)
        keys = jax.vmap(lambda key: jax.random.split(key, 2))(keys)
        targets = rpn_targets(
            keys[:, 0],
            anchors,
            sizes,
            jnp.ceil(sizes / config.size_divisor) * config.size_divisor,
            truth.boxes,
            truth.valid,
            config.rpn,
            subset=subset,
        )
        first = rpn_losses(scores, deltas, targets, smooth_l1_beta=config.rpn.smooth_l1)
        proposals = propose(scores, deltas, anchors, sizes, config.rpn.training)
        more, scalars = self.roi_head.losses(
            pyramid, _regions(proposals), truth, sizes, keys[:, 1], subset
        )
        positive, negative = targets.sampled
        share = loss.count(positive), loss.count(positive | negative)
        return first | more, scalars | {"rpn_positive": share}

    def loss(
        self,
        images: Float[Array, "B H W I"],
        sizes: Float[Array, "B 2"] | Int[Array, "B 2"],
        truth: Truth,
        *,
        keys: Key[Array, "B"],
        rngs: nnx.Rngs | None = None,
        subset: Subset = random_subset,
    ) -> tuple[Float[Array, ""], dict[str, Sum]]:
        """The loss that is minimised, and all losses and scalars by name; arguments of `losses`."""
        losses, scalars = self.losses(images, sizes, truth, keys=keys, rngs=rngs, subset=subset)
        return loss.mean_loss(losses), losses | scalars


def _regions(proposals: Proposals) -> Regions:
    return Regions(proposals.boxes, proposals.valid)


def _sizes(images: Array, sizes: Array | None) -> Array:
    if sizes is None:
        sizes = jnp.full((images.shape[0], 2), jnp.asarray(images.shape[1:3]))
    return sizes.astype(accumulation_dtype(images.dtype))


def _scales(images: Array, scales: Array | None) -> Array:
    scales = jnp.ones((images.shape[0], 2)) if scales is None else scales
    return scales.astype(accumulation_dtype(images.dtype))


def _check_truth(images: Array, truth: Truth) -> None:
    if truth.masks.shape[2:] != images.shape[1:3]:
        raise ValueError(
            "truth.masks must have the size of the padded images,"
            f" {images.shape[1:3]}; got {truth.masks.shape[2:]}"
        )
