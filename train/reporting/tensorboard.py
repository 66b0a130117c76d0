"""The metrics for TensorBoard: a mirror of the JSON lines, which stay the truth."""

import importlib
import shutil
from collections.abc import Sequence
from pathlib import Path

from natjax.train.errors import UserError
from natjax.train.reporting.metrics import Line, read_metrics, scalars


def require_tensorboard() -> None:
    """Check that the library is there.

    Raises:
      UserError: it is not.
    """
    try:
        importlib.import_module("tensorboardX")
    except ModuleNotFoundError as error:
        raise UserError(
            "--tensorboard needs tensorboardX; install it with: pip install 'natjax[tensorboard]'"
        ) from error


class TensorBoard:
    """Writes lines of metrics as scalars named such as ``train/loss`` and ``eval_ema/top1``.

    Args of the constructor: the folder, which is written anew, the metrics so far, and names of
    what is no curve. So no step is there twice, or after the one from which a run goes on.
    """

    def __init__(self, folder: Path, metrics: Path, leave_out: Sequence[str] = ()):
        from tensorboardX import SummaryWriter

        self._leave_out = leave_out
        if folder.exists():
            shutil.rmtree(folder)
        self._writer = SummaryWriter(str(folder), write_to_disk=True)
        for line in read_metrics(metrics):
            self._add(line)
        self._writer.flush()

    def add(self, line: Line) -> None:
        """Add one line, and show it."""
        self._add(line)
        self._writer.flush()

    def _add(self, line: Line) -> None:
        for name, value in scalars(line, self._leave_out).items():
            self._writer.add_scalar(name, value, line["step"])

    def close(self) -> None:
        """Close the files."""
        self._writer.close()
