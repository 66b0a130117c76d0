"""The stages behind the proposals: each reads boxes from the pyramid and gives better ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from natjax.dense.detection import losses as loss
from natjax.dense.detection.config import MaskRCNNConfig
from natjax.dense.detection.heads import BOX_BINS, MASK_BINS, BoxHead, MaskHead
from natjax.dense.detection.losses import Sum
from natjax.dense.detection.targets import (
    Regions,
    Samples,
    Truth,
    sample_mask_targets,
    sample_regions,
)
from natjax.dense.ops.boxes import decode_boxes, encode_boxes
from natjax.dense.ops.nms import Detections, multiclass_nms
from natjax.dense.ops.roi_align import roi_align
from natjax.dense.ops.sample import Subset
from natjax.nn.layers import LayerOptions

Pyramid = Sequence[Float[Array, "B _H _W C"]]

# Regions are read from these levels of the pyramid; the last is for proposals alone.
_LEVELS = 4


class RoIHead(nnx.Module):
    """Heads for boxes and masks, one of each for every stage.

    ``bbox_head`` and ``mask_head`` are a head of one stage, or a list of several, as in the
    published state dicts.

    Args:
      config: of the detector.
      **options: `natjax.nn.layers.LayerOptions`.
    """

    def __init__(self, config: MaskRCNNConfig, **options: Unpack[LayerOptions]):
        self.config = config
        box_heads = [
            BoxHead(config.channels, config.num_classes, config.box_head, **options)
            for _ in config.stages
        ]
        mask_heads = [
            MaskHead(config.channels, config.mask_channels, config.num_classes, **options)
            for _ in config.stages
        ]
        single = len(config.stages) == 1
        self.bbox_head = box_heads[0] if single else nnx.List(box_heads)
        self.mask_head = mask_heads[0] if single else nnx.List(mask_heads)

    def box_outputs(
        self, stage: int, pyramid: Pyramid, regions: Regions, *, train: bool
    ) -> tuple[Float[Array, "B R K1"], Float[Array, "B R K 4"]]:
        """Logits of the classes and deltas for each class of a stage's box head."""
        head = self.bbox_head if len(self.config.stages) == 1 else self.bbox_head[stage]
        grids = self._read(pyramid, regions, BOX_BINS)
        batch, number = regions.valid.shape
        logits, deltas = head(_merge(grids), train=train, valid=_merge(regions.valid))
        return logits.reshape(batch, number, -1), deltas.reshape(batch, number, -1, 4)

    def mask_logits(
        self, stage: int, pyramid: Pyramid, regions: Regions, labels: Int[Array, "B R"]
    ) -> Float[Array, "B R M M"]:
        """Logits of the pixels of one class's mask in each region."""
        head = self.mask_head if len(self.config.stages) == 1 else self.mask_head[stage]
        logits = head(_merge(self._read(pyramid, regions, MASK_BINS)))
        logits = loss.select_class(logits, _merge(labels))
        return logits.reshape(*labels.shape, *logits.shape[1:])

    def _read(self, pyramid: Pyramid, regions: Regions, bins: int) -> Array:
        return roi_align(
            pyramid[:_LEVELS],
            regions.boxes,
            strides=self.config.strides[:_LEVELS],
            output_size=bins,
            valid=regions.valid,
        )

    def _refine(
        self,
        stage: int,
        regions: Regions,
        labels: Array,
        deltas: Array,
        sizes: Array,
    ) -> Regions:
        """Move regions by the deltas of one class each, inside their image."""
        deltas = _merge(deltas)
        own = loss.select_class(deltas, _merge(labels)).reshape(*labels.shape, 4)
        stds = self.config.stages[stage].stds
        boxes = jax.vmap(lambda b, d, size: decode_boxes(b, d, stds, size))(
            regions.boxes, own, sizes
        )
        return Regions(jax.lax.stop_gradient(boxes), regions.valid)

    def losses(
        self,
        pyramid: Pyramid,
        regions: Regions,
        truth: Truth,
        sizes: Float[Array, "B 2"],
        keys: Key[Array, "B"],
        subset: Subset,
    ) -> tuple[dict[str, Sum], dict[str, Sum]]:
        """Losses of all stages, and their accuracies and shares of positive boxes, by name.

        Args:
          pyramid: maps of the batch.
          regions: proposals.
          truth: objects, all of which have an area.
          sizes: height and width of each image without padding.
          keys: a random key for each image.
          subset: chooses the samples.
        """
        losses, scalars = {}, {}
        stages = self.config.stages
        keys = jax.vmap(lambda key: jax.random.split(key, len(stages)))(keys)
        for i, stage in enumerate(stages):
            prefix = f"s{i}." if len(stages) > 1 else ""
            samples = sample_regions(
                keys[:, i],
                regions,
                truth,
                stage.assigner,
                self.config.sampler,
                background=self.config.num_classes,
                subset=subset,
            )
            regions = Regions(samples.boxes, samples.valid)
            logits, deltas = self.box_outputs(i, pyramid, regions, train=True)
            found = self._box_losses(i, samples, logits, deltas)
            found["loss_mask"] = self._mask_loss(i, pyramid, samples, truth)
            for name, (total, weight) in found.items():
                losses[prefix + name] = (stage.loss_weight * total, weight)
            scalars[f"{prefix}accuracy"] = _accuracy(samples, logits)
            scalars[f"{prefix}positive"] = loss.count(samples.positive), loss.count(samples.valid)
            if i + 1 < len(stages):
                regions = self._after_training(i, samples, logits, deltas, sizes)
        return losses, scalars

    def _box_losses(
        self, stage: int, samples: Samples, logits: Array, deltas: Array
    ) -> dict[str, Sum]:
        """Losses of class and corners, both divided by the number of all samples."""
        config, stds = self.config.box_head, self.config.stages[stage].stds
        labels, number = samples.labels, loss.count(samples.valid)
        classes = loss.cross_entropy(_merge(logits), _merge(labels), _merge(samples.valid))
        own = loss.select_class(_merge(deltas), _merge(labels)).reshape(*labels.shape, 4)
        if config.loss == "giou":
            boxes = decode_boxes(samples.boxes, own, stds)
            corners = loss.giou_loss(boxes, samples.targets, samples.positive)
        else:
            targets = encode_boxes(samples.boxes, samples.targets, stds)
            corners = loss.smooth_l1(own, targets, samples.positive)
        return {
            "loss_cls": (classes, number),
            "loss_bbox": (config.loss_weight * corners, number),
        }

    def _mask_loss(self, stage: int, pyramid: Pyramid, samples: Samples, truth: Truth) -> Sum:
        """Loss of the masks of positive boxes, divided by the number of their pixels."""
        # Positive boxes come first.
        samples = jax.tree.map(lambda x: x[:, : self.config.sampler.positives], samples)
        regions = Regions(samples.boxes, samples.positive)
        logits = self.mask_logits(stage, pyramid, regions, samples.labels)
        targets = sample_mask_targets(samples, truth, logits.shape[-1])
        mask = jnp.broadcast_to(samples.positive[..., None, None], targets.shape)
        return loss.binary_cross_entropy(logits, targets, mask), loss.count(mask)

    def _after_training(
        self, stage: int, samples: Samples, logits: Array, deltas: Array, sizes: Array
    ) -> Regions:
        """What the next stage is trained on: samples refined, without the objects' own boxes."""
        is_background = samples.labels == self.config.num_classes
        labels = jnp.where(is_background, _likeliest(logits), samples.labels)
        regions = Regions(samples.boxes, samples.valid & ~samples.is_truth)
        return self._refine(stage, regions, labels, deltas, sizes)

    def detect(
        self,
        pyramid: Pyramid,
        regions: Regions,
        sizes: Float[Array, "B 2"],
        scales: Float[Array, "B 2"],
    ) -> tuple[Detections, Float[Array, "B K M M"]]:
        """Boxes with classes, in pixels of the original images, and the probabilities of masks.

        Args:
          pyramid: maps of the batch.
          regions: proposals.
          sizes: height and width of each image without padding.
          scales: what height and width of the original images were multiplied by.
        """
        regions, logits, deltas = self.box_predictions(pyramid, regions, sizes)
        found = self.select(regions, logits, deltas, sizes, scales)
        # Masks are read where the boxes lie in the images at hand.
        regions = Regions(found.boxes * _corner_scales(scales), found.valid)
        return found, self.mask_probabilities(pyramid, regions, found.labels)

    def box_predictions(
        self, pyramid: Pyramid, regions: Regions, sizes: Float[Array, "B 2"]
    ) -> tuple[Regions, Float[Array, "B R K1"], Float[Array, "B R K 4"]]:
        """The regions of the last stage, its deltas, and the mean of the logits of all stages."""
        total, last = 0.0, len(self.config.stages) - 1
        for i in range(last + 1):
            logits, deltas = self.box_outputs(i, pyramid, regions, train=False)
            total = total + logits
            if i < last:
                regions = self._refine(i, regions, _likeliest(logits), deltas, sizes)
        return regions, total / (last + 1), deltas

    def select(
        self,
        regions: Regions,
        logits: Float[Array, "B R K1"],
        deltas: Float[Array, "B R K 4"],
        sizes: Float[Array, "B 2"],
        scales: Float[Array, "B 2"],
    ) -> Detections:
        """Boxes of all classes, suppressed class by class, the best of each image."""
        config = self.config
        scores = jax.nn.softmax(logits, axis=-1)[..., :-1]
        # Of probabilities, no more than these can exceed the threshold.
        most = int(1 / config.score_threshold) if config.score_threshold else config.num_classes

        def of_one(regions: Regions, deltas: Array, scores: Array, size: Array, scale: Array):
            stds = config.stages[-1].stds
            boxes = decode_boxes(regions.boxes[:, None], deltas, stds, size)
            return multiclass_nms(
                boxes / scale[None],
                scores,
                score_threshold=config.score_threshold,
                iou_threshold=config.iou_threshold,
                max_kept=config.max_detections,
                valid=regions.valid,
                candidates=scores.shape[0] * min(most, config.num_classes),
            )

        return jax.vmap(of_one)(regions, deltas, scores, sizes, _corner_scales(scales))

    def mask_probabilities(
        self, pyramid: Pyramid, regions: Regions, labels: Int[Array, "B R"]
    ) -> Float[Array, "B R M M"]:
        """Mean over the stages of the probabilities of the pixels; 0 for no region."""
        stages = range(len(self.config.stages))
        maps = [jax.nn.sigmoid(self.mask_logits(i, pyramid, regions, labels)) for i in stages]
        mean = sum(maps[1:], start=maps[0]) / len(maps)
        return jnp.where(regions.valid[..., None, None], mean, 0)


def _merge(array: Array) -> Array:
    """Boxes of all images in one axis."""
    return array.reshape(-1, *array.shape[2:])


def _likeliest(logits: Array) -> Array:
    """The likeliest class, background excepted."""
    return jnp.argmax(logits[..., :-1], axis=-1).astype(jnp.int32)


def _corner_scales(scales: Array) -> Array:
    """Scales of height and width as factors of x1, y1, x2, y2: ``[B, 1, 4]``."""
    height, width = scales[:, 0], scales[:, 1]
    return jnp.stack([width, height, width, height], axis=-1)[:, None, :]


def _accuracy(samples: Samples, logits: Array) -> Sum:
    """How many samples get the highest logit for their own class."""
    right = jnp.argmax(logits, axis=-1).astype(jnp.int32) == samples.labels
    return loss.count(right & samples.valid), loss.count(samples.valid)
