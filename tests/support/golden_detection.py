"""Detectors of the goldens: their configurations as models of ours, their batches and weights."""

import dataclasses

import golden_upernet
import goldens
import jax.numpy as jnp
import numpy as np
from flax import nnx

from natjax import NATConfig
from natjax.dense.detection.config import (
    CASCADE_STAGES,
    SINGLE_STAGE,
    BoxHeadConfig,
    MaskRCNNConfig,
    ProposalConfig,
    RPNConfig,
    SamplerConfig,
)
from natjax.dense.detection.mask_rcnn import MaskRCNN
from natjax.dense.detection.targets import Truth

NAMES = ("maskrcnn_nat", "cascade_dinat")


def _backbone(theirs):
    return NATConfig(
        dim=theirs["embed_dim"],
        depths=tuple(theirs["depths"]),
        num_heads=tuple(theirs["num_heads"]),
        kernel_size=theirs["kernel_size"],
        dilations=tuple(map(tuple, theirs.get("dilations", ()))),
        mlp_ratio=theirs["mlp_ratio"],
        layer_scale=theirs.get("layer_scale"),
        num_classes=0,
        output_norms=True,
    )


def _proposals(theirs):
    return ProposalConfig(per_level=theirs["nms_pre"], kept=theirs["max_per_img"])


def _sampler(theirs):
    return SamplerConfig(number=theirs["num"], positive_fraction=theirs["pos_fraction"])


def config(name):
    """The config of a golden detector: that of the published ones, with other numbers."""
    record = goldens.record(name, "config")
    cascade = record["type"] == "CascadeRCNN"
    heads = record["roi_head"]["bbox_head"]
    head = heads[0] if cascade else heads
    train, test = record["train_cfg"], record["test_cfg"]
    rcnn = train["rcnn"][0] if cascade else train["rcnn"]
    rpn = RPNConfig(
        border=0.0 if cascade else None,
        smooth_l1=1 / 9 if cascade else 0.0,
        sampler=_sampler(train["rpn"]["sampler"]),
        training=_proposals(train["rpn_proposal"]),
        inference=_proposals(test["rpn"]),
    )
    boxes = BoxHeadConfig(
        convs=head.get("num_shared_convs", 0),
        conv_channels=head.get("conv_out_channels", 256),
        linears=head.get("num_shared_fcs", 2),
        linear_channels=head["fc_out_channels"],
        loss="giou" if cascade else "l1",
        loss_weight=head["loss_bbox"]["loss_weight"],
    )
    return MaskRCNNConfig(
        backbone=_backbone(record["backbone"]),
        num_classes=head["num_classes"],
        channels=record["neck"]["out_channels"],
        rpn=rpn,
        stages=CASCADE_STAGES if cascade else SINGLE_STAGE,
        box_head=boxes,
        mask_channels=record["roi_head"]["mask_head"]["conv_out_channels"],
        sampler=_sampler(rcnn["sampler"]),
        max_detections=test["rcnn"]["max_per_img"],
    )


def model(name, param_dtype=jnp.float32, **changes):
    """A golden detector with its parameters and running statistics."""
    shape = dataclasses.replace(config(name), **changes)
    made = nnx.eval_shape(lambda: MaskRCNN(shape, param_dtype=param_dtype, rngs=nnx.Rngs(0)))
    golden_upernet.set_arrays(made, to_ours(goldens.under(name, "param")))
    return made


def to_ours(arrays):
    """Parameters, statistics or gradients under their keys, in our names and layouts."""
    transposed = {k: v for k, v in arrays.items() if ".upsample.weight" in k}
    ours = golden_upernet.to_ours({k: v for k, v in arrays.items() if k not in transposed})
    for key, array in transposed.items():
        ours[key.replace("weight", "kernel")] = array.transpose(2, 3, 0, 1)
    return ours


def batch(name, places=7, dtype=jnp.float32):
    """Images, sizes and objects of a golden training batch; more places than objects."""
    arrays = goldens.load(f"{name}_train")
    images = arrays["input"].transpose(0, 2, 3, 1)
    count = len(images)
    truth = Truth(
        boxes=np.zeros((count, places, 4), np.float32),
        labels=np.zeros((count, places), np.int32),
        valid=np.zeros((count, places), bool),
        masks=np.zeros((count, places, *images.shape[1:3]), bool),
    )
    for i in range(count):
        number = len(arrays[f"gt_labels{i}"])
        masks = arrays[f"gt_masks{i}"]
        truth.boxes[i, :number] = arrays[f"gt_bboxes{i}"]
        truth.labels[i, :number] = arrays[f"gt_labels{i}"]
        truth.valid[i, :number] = True
        truth.masks[i, :number, : masks.shape[1], : masks.shape[2]] = masks
    sizes = np.stack([arrays[f"meta{i}/img_shape"][:2] for i in range(count)])
    truth = Truth(*map(jnp.asarray, truth))
    return (
        jnp.asarray(images, dtype),
        jnp.asarray(sizes, dtype),
        truth._replace(boxes=truth.boxes.astype(dtype)),
    )
