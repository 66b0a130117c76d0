"""What a configuration makes of a step: network, optimizer and augmentation, without any data.

Free of everything that reads data, so that steps can be compiled where there is none.
"""

import math

from natjax.train.config.settings import TrainConfig
from natjax.train.engine.functional import ImageSet, build_model
from natjax.train.engine.optimizer import make_optimizer, schedule
from natjax.train.engine.step import Network, Task


def count_steps(config: TrainConfig, images: int) -> int:
    """Return the steps of a run: as configured, else enough for all epochs.

    Args:
      config: The configuration.
      images: Training images.
    """
    return config.steps or math.ceil(config.epochs * images / config.batch_size)


def build_task(config: TrainConfig, spec: ImageSet, images: int) -> Task:
    """Return the constants of a step.

    Args:
      config: The configuration.
      spec: Channels, classes and normalisation.
      images: Training images, which make an epoch.

    Raises:
      UserError: a name or a number in the configuration is wrong.
    """
    total, per_epoch = count_steps(config, images), images / config.batch_size
    return Task(
        network=Network(build_model(config.model, spec, config.seed), spec.mean, spec.std),
        optimizer=make_optimizer(config.optimizer, total, per_epoch),
        schedule=schedule(config.optimizer, total, per_epoch),
        label_smoothing=config.label_smoothing,
        ema_decay=config.ema_decay,
        seed=config.seed,
        ema_warmup=config.ema_warmup,
        mix=config.augment.mix,
        erase=config.augment.erase,
        accumulate=config.accumulate,
        remat=config.model.remat,
    )
