"""The region proposal network: where there may be objects, of whatever class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Key

from natjax.dense.detection.config import ProposalConfig, RPNConfig
from natjax.dense.detection.losses import Sum, binary_cross_entropy, smooth_l1
from natjax.dense.ops.anchors import Size, anchors_in_padding, anchors_inside, pyramid_anchors
from natjax.dense.ops.boxes import decode_boxes, encode_boxes
from natjax.dense.ops.nms import nms
from natjax.dense.ops.sample import Sampled, Subset, random_subset, sample
from natjax.kernels.checks import accumulation_dtype
from natjax.nn.layers import LayerOptions, conv

# Deltas of anchors are learned as they are.
_STDS = (1.0, 1.0, 1.0, 1.0)


class RPNHead(nnx.Module):
    """A score and four deltas for every anchor; the same layers for all levels.

    All layers start at PyTorch's default, as in the published training.

    Args:
      channels: of the pyramid, and of the hidden layer.
      num_anchors: of a position.
      **options: `natjax.nn.layers.LayerOptions`.
    """

    def __init__(self, channels: int, num_anchors: int, **options: Unpack[LayerOptions]):
        self.rpn_conv = conv(channels, channels, 3, 1, padding=1, **options)
        # In full precision: losses and boxes need it.
        options["dtype"] = accumulation_dtype(jnp.dtype(options["dtype"]))
        self.rpn_cls = conv(channels, num_anchors, 1, 1, **options)
        self.rpn_reg = conv(channels, 4 * num_anchors, 1, 1, **options)

    def __call__(
        self, pyramid: Sequence[Float[Array, "B _H _W C"]]
    ) -> tuple[Float[Array, "B A"], Float[Array, "B A 4"]]:
        """Logits and deltas of all anchors, in the order level, row, column, anchor."""
        scores, deltas = [], []
        for x in pyramid:
            hidden = nnx.relu(self.rpn_conv(x))
            scores.append(self.rpn_cls(hidden).reshape(x.shape[0], -1))
            deltas.append(self.rpn_reg(hidden).reshape(x.shape[0], -1, 4))
        return jnp.concatenate(scores, axis=1), jnp.concatenate(deltas, axis=1)


class Proposals(NamedTuple):
    """Boxes that may hold objects, in descending order of score.

    Attributes:
      boxes: corners, inside their image.
      scores: probabilities.
      valid: whether an entry is a proposal.
    """

    boxes: Float[Array, "B K 4"]
    scores: Float[Array, "B K"]
    valid: Bool[Array, "B K"]


class Anchors(NamedTuple):
    """Anchors of a batch of images of one padded size.

    Attributes:
      boxes: of all cells, in the order level, row, column, ratio.
      sizes: height and width of each level.
      strides: pixels between two cells, of each level.
      num_ratios: anchors of a cell.
    """

    boxes: Float[Array, "A 4"]
    sizes: tuple[Size, ...]
    strides: tuple[int, ...]
    num_ratios: int

    @property
    def counts(self) -> tuple[int, ...]:
        """Anchors of each level."""
        return tuple(height * width * self.num_ratios for height, width in self.sizes)


def make_anchors(sizes: Sequence[Size], strides: Sequence[int], config: RPNConfig) -> Anchors:
    """The anchors of a pyramid with maps of these sizes."""
    boxes = pyramid_anchors(sizes, strides, scale=config.scale, ratios=config.ratios)
    return Anchors(boxes, tuple(sizes), tuple(strides), len(config.ratios))


def propose(
    scores: Float[Array, "B A"],
    deltas: Float[Array, "B A 4"],
    anchors: Anchors,
    sizes: Float[Array, "B 2"],
    config: ProposalConfig,
) -> Proposals:
    """Make proposals of the best anchors of each level; there is no gradient through them.

    Args:
      scores: logits of the anchors.
      deltas: of the anchors.
      anchors: of the batch.
      sizes: height and width of each image without padding; proposals are clipped to it.
      config: how many to make.
    """
    scores, deltas = jax.lax.stop_gradient((scores, deltas))

    def of_one(scores: Array, deltas: Array, size: Array) -> Proposals:
        chosen, levels = _best_of_levels(scores, anchors.counts, config.per_level)
        best = jax.nn.sigmoid(scores[chosen])
        boxes = decode_boxes(anchors.boxes[chosen], deltas[chosen], _STDS, size)
        kept = nms(
            boxes,
            best,
            iou_threshold=config.iou_threshold,
            max_kept=config.kept,
            groups=levels,
            valid=jnp.all(boxes[:, 2:] > boxes[:, :2], axis=-1),
        )
        there = kept.valid
        boxes = jnp.where(there[:, None], boxes[kept.indices], 0)
        return Proposals(boxes, jnp.where(there, best[kept.indices], 0), there)

    return jax.vmap(of_one)(scores, deltas, sizes)


def _best_of_levels(scores: Array, counts: Sequence[int], limit: int) -> tuple[Array, Array]:
    """Indices of the highest scores of each level, and the level of each."""
    chosen, levels, start = [], [], 0
    for level, number in enumerate(counts):
        probabilities = jax.nn.sigmoid(scores[start : start + number])
        # By probabilities, as published: where logits are too large to tell apart, the order of
        # the anchors decides, which both keep. XLA gathers the whole batch on every GPU for a top_k
        # of all there is.
        if number > limit:
            _, best = jax.lax.top_k(probabilities, limit)
        else:
            best = jnp.argsort(-probabilities, stable=True).astype(jnp.int32)
        chosen.append(best + start)
        levels.append(jnp.full(best.shape, level, jnp.int32))
        start += number
    return jnp.concatenate(chosen), jnp.concatenate(levels)


class RPNTargets(NamedTuple):
    """What the anchors are trained for.

    Attributes:
      sampled: which anchors are trained on.
      deltas: of positive anchors; anything for others.
    """

    sampled: Sampled
    deltas: Float[Array, "B A 4"]


def rpn_targets(
    keys: Key[Array, "B"],
    anchors: Anchors,
    sizes: Float[Array, "B 2"],
    padded: Float[Array, "B 2"],
    objects: Float[Array, "B G 4"],
    valid_objects: Bool[Array, "B G"],
    config: RPNConfig,
    *,
    subset: Subset = random_subset,
) -> RPNTargets:
    """Assign and sample anchors.

    Args:
      keys: a random key for each image.
      anchors: of the batch.
      sizes: height and width of each image without padding.
      padded: height and width of each image with its own padding.
      objects: boxes of the objects.
      valid_objects: which of them there are.
      config: the rules.
      subset: chooses the sample.
    """

    def of_one(key: Array, size: Array, padded: Array, objects: Array, there: Array) -> RPNTargets:
        valid = ~anchors_in_padding(anchors.sizes, anchors.strides, padded, anchors.num_ratios)
        if config.border is not None:
            valid &= anchors_inside(anchors.boxes, size, config.border)
        assigned = config.assigner(anchors.boxes, objects, valid=valid, valid_objects=there)
        chosen = sample(
            key,
            assigned,
            number=config.sampler.number,
            positive_fraction=config.sampler.positive_fraction,
            subset=subset,
        )
        return RPNTargets(chosen, encode_boxes(anchors.boxes, objects[assigned.objects], _STDS))

    return jax.vmap(of_one)(keys, sizes, padded, objects, valid_objects)


def rpn_losses(
    scores: Float[Array, "B A"],
    deltas: Float[Array, "B A 4"],
    targets: RPNTargets,
    *,
    smooth_l1_beta: float = 0.0,
) -> dict[str, Sum]:
    """Losses of scores and deltas.

    Both are divided by the number of all sampled anchors, where an image without positive or
    negative ones counts as if it had one.

    Args:
      scores: logits of the anchors.
      deltas: of the anchors.
      targets: of the anchors.
      smooth_l1_beta: below this distance the loss of a delta is quadratic; 0 is L1.
    """
    positive, negative = targets.sampled
    kinds = (jnp.sum(kind, axis=1, dtype=scores.dtype) for kind in (positive, negative))
    weight = sum(
        (jnp.sum(jnp.maximum(kind, 1)) for kind in kinds), start=jnp.zeros_like(scores[0, 0])
    )
    return {
        "loss_rpn_cls": (binary_cross_entropy(scores, positive, positive | negative), weight),
        "loss_rpn_bbox": (
            smooth_l1(deltas, targets.deltas, positive, beta=smooth_l1_beta),
            weight,
        ),
    }
