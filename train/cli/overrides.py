"""Settings on the command line: ``--optimizer.learning-rate 5e-4`` over a preset."""

from collections.abc import Sequence

import tyro

from natjax.train.config.settings import TrainConfig
from natjax.train.tasks.classification.presets import PRESETS, check_start, get_preset


def parse_train(preset: str, args: Sequence[str]) -> TrainConfig:
    """Return a preset with settings replaced.

    Args:
      preset: Name of the preset.
      args: Flags, as in ``["--epochs", "5", "--mesh.data", "4"]``.

    Raises:
      UserError: there is no such preset, or it needs weights to start from.
      SystemExit: after ``--help`` (0) or a wrong flag (2), which has been explained.
    """
    config = get_preset(preset)
    config = tyro.cli(
        TrainConfig,
        default=config,
        args=list(args),
        prog=f"natjax train {preset}",
        description=PRESETS[preset].__doc__,
    )
    check_start(preset, config)
    return config
