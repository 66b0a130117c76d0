"""Published models as backbones, with the dilations that dense prediction gives them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from natjax.backbones.nat import NATConfig
from natjax.backbones.variants import VARIANTS


def cycle_dilations(
    depths: Sequence[int], cycles: Sequence[Sequence[int]]
) -> tuple[tuple[int, ...], ...]:
    """Per level, 1 for even blocks and the dilations of a cycle, in turn, for odd ones.

    >>> cycle_dilations((3, 8), ((16,), (2, 3, 4)))
    ((1, 16, 1), (1, 2, 1, 3, 1, 4, 1, 2))
    """
    return tuple(
        tuple(cycle[block // 2 % len(cycle)] if block % 2 else 1 for block in range(depth))
        for depth, cycle in zip(depths, cycles, strict=True)
    )


def backbone_config(
    name: str, *, drop_path: float, input_size: int, cycles: Sequence[Sequence[int]] = ()
) -> NATConfig:
    """The config of a model as backbone for dense prediction.

    Args:
      name: of the classifier.
      drop_path: stochastic depth rate of the last block.
      input_size: side of the images that it is trained on.
      cycles: dilations of each level, as for `cycle_dilations`; empty keeps the model's own.
    """
    config = VARIANTS[name]
    assert isinstance(config, NATConfig)
    dilations = cycle_dilations(config.depths, cycles) if cycles else config.dilations
    return dataclasses.replace(
        config,
        num_classes=0,
        output_norms=True,
        drop_path=drop_path,
        input_size=input_size,
        dilations=dilations,
    )
