"""What a training step must know of ImageNet, without any of its images."""

import types

from natjax.preprocessing import IMAGENET_MEAN, IMAGENET_STD

IMAGES = 1_281_167
IMAGENET = types.SimpleNamespace(
    channels=3,
    class_names=tuple(map(str, range(1000))),
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
)
