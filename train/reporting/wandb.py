"""The metrics for Weights & Biases: a mirror of the JSON lines, which stay the truth."""

import importlib
import secrets
from collections.abc import Collection
from pathlib import Path
from typing import Any

from natjax.train import console
from natjax.train.errors import UserError
from natjax.train.reporting.metrics import Line, scalars


def require_wandb() -> None:
    """Check that the library is there.

    Raises:
      UserError: it is not.
    """
    try:
        importlib.import_module("wandb")
    except ModuleNotFoundError as error:
        raise UserError(
            "--wandb needs wandb; install it with: pip install 'natjax[wandb]'"
        ) from error


class Wandb:
    """Sends lines of metrics as scalars named such as ``train/loss`` and ``eval_ema/top1``.

    A run that goes on is the same run there, known by a file in its folder. Lines that were sent
    before an interruption come again, equal, and are left out.

    Args of the constructor: the project, the run folder, the configuration as JSON values, and
    names of what is no curve.

    Raises:
      UserError: W&B refuses, such as where nobody has logged in.
    """

    def __init__(
        self, project: str, folder: Path, config: dict[str, Any], leave_out: Collection[str] = ()
    ):
        import wandb

        self._leave_out = leave_out
        try:
            self._run = wandb.init(
                project=project,
                name=folder.absolute().name,
                id=_identity(folder / "wandb_id"),
                resume="allow",
                dir=folder,
                config=config,
                # What it prints beside the progress display, and what it records of the display.
                settings=wandb.Settings(silent=True, console="off"),
            )
        except wandb.errors.Error as error:
            raise UserError(
                f"--wandb {project}: {error} (WANDB_MODE=offline keeps the metrics in"
                f" {folder / 'wandb'}, for `wandb sync`)"
            ) from error
        place = f"in {folder / 'wandb'}" if self._run.offline else f"at {self._run.url}"
        console.say(f"Weights & Biases: {place}")

    def add(self, line: Line) -> None:
        """Add one line."""
        if line["step"] >= self._run.step:
            self._run.log(scalars(line, self._leave_out), step=line["step"])

    def close(self) -> None:
        """Wait until all is sent."""
        self._run.finish()


def _identity(path: Path) -> str:
    """Return the name of a run for W&B, drawn once."""
    if not path.exists():
        path.write_text(secrets.token_hex(8) + "\n")
    return path.read_text().strip()
