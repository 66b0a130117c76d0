"""A NAT that compiles in seconds, as model ``nat_pico``; run as a module it is `natjax` with it.

On it, as ``upernet_pico``, a UPerNet; and as ``mask_rcnn_pico`` a detector, with four levels.

As a module it waits before every step for as many seconds as the variable PICO_PAUSE says.
"""

import dataclasses
import os
import sys
import time
from typing import Any, cast

from natjax.backbones import variants
from natjax.backbones.nat import NATConfig
from natjax.dense.detection.config import (
    BoxHeadConfig,
    MaskRCNNConfig,
    ProposalConfig,
    RPNConfig,
    SamplerConfig,
)
from natjax.dense.detection.variants import DETECTORS
from natjax.dense.segmentation.upernet import UPerNetConfig
from natjax.dense.segmentation.variants import SEGMENTORS

NAME, SEGMENTOR, DETECTOR = "nat_pico", "upernet_pico", "mask_rcnn_pico"


def register() -> None:
    """Add the models to natjax's lists."""
    config = NATConfig(
        dim=16,
        depths=(1,),
        num_heads=(2,),
        kernel_size=3,
        mlp_ratio=2.0,
        num_classes=10,
        input_size=32,
    )
    cast("dict[str, Any]", variants.VARIANTS)[NAME] = config
    backbone = dataclasses.replace(config, num_classes=0, output_norms=True)
    cast("dict[str, Any]", SEGMENTORS)[SEGMENTOR] = UPerNetConfig(
        backbone=backbone, channels=8, pool_scales=(1, 2), auxiliary_channels=4
    )
    proposals = ProposalConfig(per_level=20, kept=12)
    cast("dict[str, Any]", DETECTORS)[DETECTOR] = MaskRCNNConfig(
        backbone=dataclasses.replace(
            backbone, dim=4, depths=(1,) * 4, num_heads=(1,) * 4, dilations=()
        ),
        num_classes=3,
        channels=4,
        rpn=RPNConfig(
            sampler=SamplerConfig(number=16, positive_fraction=0.5),
            training=proposals,
            inference=proposals,
        ),
        box_head=BoxHeadConfig(linear_channels=8),
        mask_channels=4,
        sampler=SamplerConfig(number=8, positive_fraction=0.25),
        max_detections=6,
    )


def unregister() -> None:
    """Undo `register`."""
    del cast("dict[str, Any]", variants.VARIANTS)[NAME]
    del cast("dict[str, Any]", SEGMENTORS)[SEGMENTOR]
    del cast("dict[str, Any]", DETECTORS)[DETECTOR]


def flags(run: object, **settings: object) -> list[str]:
    """Return arguments of a short training run; dots in names are written as ``__``."""
    values: dict[str, object] = {
        "model.name": NAME,
        "steps": 24,
        "batch_size": 16,
        "log_every": 4,
        "checkpoint.every": 8,
        "eval_every": 16,
        "optimizer.warmup_steps": 4,
        "run": run,
    }
    values |= {name.replace("__", "."): value for name, value in settings.items()}
    return [word for name, value in values.items() for word in _flag(name, value)]


def _flag(name: str, value: object) -> list[str]:
    flag = f"--{name.replace('_', '-')}"
    return [flag] if value is True else [flag, str(value)]


def _pause(seconds: float) -> None:
    from natjax.train.engine import loop

    put_batch = loop.put_batch

    def slow(*args: Any) -> Any:
        time.sleep(seconds)
        return put_batch(*args)

    loop.put_batch = slow


if __name__ == "__main__":
    from natjax.cli import main

    register()
    if "PICO_PAUSE" in os.environ:
        _pause(float(os.environ["PICO_PAUSE"]))
    sys.exit(main())
