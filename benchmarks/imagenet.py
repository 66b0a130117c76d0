"""What a training step must know of ImageNet, without any of its images."""

from typing import Any

from natjax.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from natjax.train.engine.network import Network
from natjax.train.engine.step import StepSetup, set_up_step
from natjax.train.engine.trainer import count_steps
from natjax.train.tasks.classification.config import ClassificationConfig
from natjax.train.tasks.classification.datasets.registry import LabelledImages
from natjax.train.tasks.classification.task import Classification

IMAGES = 1_281_167


def _no_images(*_: object) -> Any:
    raise FileNotFoundError("there are no images here")


IMAGENET = LabelledImages(
    name="imagenet2012",
    channels=3,
    class_names=tuple(map(str, range(1000))),
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    train_split="train",
    test_split="validation",
    builder=_no_images,
)


def step_setup(config: ClassificationConfig, network: Network | None = None) -> StepSetup:
    """Return the training step of a configuration on ImageNet.

    Args:
      config: The run.
      network: In place of the configured one.
    """
    task = Classification(config, IMAGENET, network)
    return set_up_step(task, count_steps(config, IMAGES), IMAGES / config.batch_size)
