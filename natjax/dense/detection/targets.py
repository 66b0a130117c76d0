"""What the heads of a stage are trained on: sampled proposals, and what is true of them."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from natjax.dense.detection.config import SamplerConfig
from natjax.dense.ops.assign import Assignment, MaxIoUAssigner
from natjax.dense.ops.masks import mask_targets
from natjax.dense.ops.sample import Slots, Subset, in_slots, random_subset, sample


class Truth(NamedTuple):
    """The objects of a batch of images, in a fixed number of slots.

    Attributes:
      boxes: corners in pixels of the padded images.
      labels: classes, from 0.
      valid: whether a slot holds an object. What the others hold is of no matter.
      masks: which pixels of the padded image belong to the object.
    """

    boxes: Float[Array, "B G 4"]
    labels: Int[Array, "B G"]
    valid: Bool[Array, "B G"]
    masks: Bool[Array, "B G H W"]


class Regions(NamedTuple):
    """Boxes that a stage looks at.

    Attributes:
      boxes: corners, inside their image.
      valid: whether an entry is one.
    """

    boxes: Float[Array, "B R 4"]
    valid: Bool[Array, "B R"]


class Samples(NamedTuple):
    """Boxes that a stage is trained on: positive ones, then background, then empty slots.

    Attributes:
      boxes: corners.
      valid: whether a slot holds a box.
      positive: whether it holds a box of an object.
      labels: class; the number of classes stands for background.
      targets: box of the object of a positive one.
      objects: which object that is.
      is_truth: whether the box is that of an object itself, added to the proposals.
    """

    boxes: Float[Array, "B S 4"]
    valid: Bool[Array, "B S"]
    positive: Bool[Array, "B S"]
    labels: Int[Array, "B S"]
    targets: Float[Array, "B S 4"]
    objects: Int[Array, "B S"]
    is_truth: Bool[Array, "B S"]


def usable(truth: Truth) -> Truth:
    """Without objects that have no area, which no box can be moved onto."""
    has_area = jnp.all(truth.boxes[..., 2:] > truth.boxes[..., :2], axis=-1)
    return truth._replace(valid=truth.valid & has_area)


def sample_regions(
    keys: Key[Array, "B"],
    regions: Regions,
    truth: Truth,
    assigner: MaxIoUAssigner,
    sampler: SamplerConfig,
    *,
    background: int,
    subset: Subset = random_subset,
) -> Samples:
    """Assign regions to objects and choose which to train on; there is no gradient to them.

    The boxes of the objects themselves are added to the regions, so that there are good ones from
    the first step on.

    Args:
      keys: a random key for each image.
      regions: proposals, or what an earlier stage made of them.
      truth: the objects.
      assigner: what a region is trained for.
      sampler: how many to choose.
      background: the label of boxes that belong to no object.
      subset: chooses them.
    """

    def of_one(key: Array, regions: Regions, truth: Truth) -> Samples:
        assigned = assigner(
            regions.boxes, truth.boxes, valid=regions.valid, valid_objects=truth.valid
        )
        assigned = _with_truth(assigned, truth.valid)
        chosen = sample(
            key,
            assigned,
            number=sampler.number,
            positive_fraction=sampler.positive_fraction,
            subset=subset,
        )
        slots = in_slots(chosen, sampler.number)
        return _fill(slots, assigned, regions, truth, background)

    return jax.vmap(of_one)(keys, jax.lax.stop_gradient(regions), truth)


def _with_truth(assigned: Assignment, valid: Array) -> Assignment:
    """The assignment of the objects to themselves, then that of the regions."""
    places = jnp.arange(valid.shape[0], dtype=jnp.int32)
    own = Assignment(places, valid, jnp.zeros_like(valid))
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), own, assigned)


def _fill(
    slots: Slots, assigned: Assignment, regions: Regions, truth: Truth, background: int
) -> Samples:
    boxes = jnp.concatenate([truth.boxes.astype(regions.boxes.dtype), regions.boxes])
    objects = assigned.objects[slots.indices]
    return Samples(
        boxes=jnp.where(slots.valid[:, None], boxes[slots.indices], 0),
        valid=slots.valid,
        positive=slots.positive,
        labels=jnp.where(slots.positive, truth.labels[objects], background).astype(jnp.int32),
        targets=truth.boxes[objects].astype(boxes.dtype),
        objects=objects,
        is_truth=slots.positive & (slots.indices < truth.valid.shape[0]),
    )


def sample_mask_targets(samples: Samples, truth: Truth, size: int) -> Bool[Array, "B S M M"]:
    """The masks of the objects in their boxes, on grids; anything for boxes that are not positive.

    Args:
      samples: boxes.
      truth: objects with masks.
      size: side of a grid.
    """
    return jax.vmap(lambda masks, boxes, objects: mask_targets(masks, boxes, objects, size=size))(
        truth.masks, samples.boxes, samples.objects
    )
