"""Images with objects as batches: changed at random for training, as they are for evaluation.

Training batches have ``image`` uint8 [B, H, W, 3], ``size`` int32 [B, 2], ``boxes`` float32
[B, G, 4], ``label`` int32 [B, G], ``valid`` bool [B, G] and ``masks`` uint8 [B, G, H, W / 8], eight
pixels a byte along the width with the leftmost in the highest bit. Evaluation batches have
``image``, ``size``, ``scale`` float32 [B, 2], ``id`` int32 [B] and ``mask`` bool [B].
"""

from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import UInt8

from natjax.train.cluster.processes import Host
from natjax.train.data.pipeline import Batch
from natjax.train.data.readable import Readable
from natjax.train.tasks.detection.config import AugmentConfig, DetectionConfig
from natjax.train.tasks.detection.datasets.registry import Split


def train_records(split: Split) -> Readable:
    """Return the images that training takes: those with objects, and not too small.

    ``len`` is the number of examples of an epoch.

    Raises:
      UserError: there is none.
    """
    raise NotImplementedError


def train_batches(
    records: Readable, config: DetectionConfig, start: int, host: Host
) -> Iterator[Batch]:
    """Iterate over training batches from a step on, without end.

    Args:
      records: As `train_records` has them.
      config: The run.
      start: Steps done.
      host: Which rows this process makes.
    """
    raise NotImplementedError


def eval_records(split: Split) -> Readable:
    """Return all images, with what cannot be read passed over and named."""
    raise NotImplementedError


def eval_batches(
    records: Readable, config: DetectionConfig, devices: int, host: Host
) -> Iterable[Batch]:
    """Return batches that hold every held-out image once.

    Args:
      records: As `eval_records` has them.
      config: The run.
      devices: Rows of a batch where images are filled up as little as can be.
      host: Which rows this process makes.
    """
    raise NotImplementedError


def view(image: UInt8[np.ndarray, "H W 3"], how: AugmentConfig) -> Batch:
    """Return ``image``, ``size`` and ``scale`` of an image as evaluation sees it, without rows."""
    raise NotImplementedError
