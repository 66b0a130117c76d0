"""What training steps of the published recipes must know of data, without any of the images."""

from typing import Any

from natjax.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from natjax.train.engine.step import StepSetup, set_up_step
from natjax.train.engine.task import Task
from natjax.train.engine.trainer import count_steps
from natjax.train.tasks.classification.datasets.registry import LabelledImages
from natjax.train.tasks.segmentation.datasets.registry import LabelMaps

IMAGENET_IMAGES = 1_281_167
ADE20K_IMAGES = 20_210
# Those with objects.
COCO_IMAGES = 117_266


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
ADE20K = LabelMaps(name="ade20k", class_names=tuple(map(str, range(150))), open=_no_images)


def step_of(task: Task[Any], images: int) -> StepSetup:
    """Return the training step of a task.

    Args:
      task: The task.
      images: How many there are to train on.
    """
    config = task.config
    return set_up_step(task, count_steps(config, images), images / config.batch_size)
