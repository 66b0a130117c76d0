"""The folder of a run: what is in it, whose it is, and whether it may be continued."""

import contextlib
import dataclasses
import fcntl
import json
from collections.abc import Iterator
from pathlib import Path

from natjax.train.config import TrainConfig
from natjax.train.config_json import differences, from_json, to_json
from natjax.train.errors import UserError
from natjax.train.files import write_whole


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """Paths inside a run folder.

    Attributes:
      path: The folder.
    """

    path: Path

    @property
    def config(self) -> Path:
        """The resolved configuration, JSON."""
        return self.path / "config.json"

    @property
    def metrics(self) -> Path:
        """Metrics, a JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Checkpoints, a folder a step."""
        return self.path / "checkpoints"

    @property
    def damaged(self) -> Path:
        """Where damaged checkpoints are moved."""
        return self.path / "damaged"

    @property
    def tensorboard(self) -> Path:
        """The metrics for TensorBoard."""
        return self.path / "tensorboard"

    @property
    def profile(self) -> Path:
        """Traces."""
        return self.path / "profile"

    @property
    def confusion(self) -> Path:
        """Picture of what is taken for what."""
        return self.path / "confusion.png"

    @property
    def confusion_counts(self) -> Path:
        """The counts behind `confusion`."""
        return self.path / "confusion.csv"

    @property
    def curves(self) -> Path:
        """Picture of the learning curves."""
        return self.path / "curves.png"

    @property
    def predictions(self) -> Path:
        """Picture of test images with predictions."""
        return self.path / "predictions.png"

    def read_config(self) -> TrainConfig:
        """Return the configuration of the run.

        Raises:
          UserError: there is no run here, or its configuration cannot be read.
        """
        try:
            return from_json(json.loads(self.config.read_text()))
        except FileNotFoundError as error:
            raise UserError(
                f"{self.path} is no run folder (it has no config.json);"
                " `natjax train PRESET --run FOLDER` makes one"
            ) from error
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{self.config} cannot be read: {error}") from error

    def write_config(self, config: TrainConfig) -> None:
        """Write the configuration; the file is replaced at once."""
        write_whole(self.config, json.dumps(to_json(config), indent=2) + "\n")


@contextlib.contextmanager
def claim(path: Path, config: TrainConfig, writes: bool = True) -> Iterator[RunFolder]:
    """Make or continue the run folder at `path`, for this process alone.

    Args:
      path: The folder; made where missing.
      config: What is to be run.
      writes: Whether this process is the one that writes (the first of a job).

    Raises:
      UserError: another run has the folder, it belongs to another configuration (the differences
        are shown), or it holds something else.
    """
    folder = RunFolder(path)
    if not writes:
        yield folder
        return
    path.mkdir(parents=True, exist_ok=True)
    with (path / ".lock").open("w") as lock:
        # The kernel lets go when the process ends, however it ends.
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"{path} is in use by another run; wait, or give another --run"
            ) from error
        _check_same(folder, config)
        folder.write_config(config)
        yield folder


def _check_same(folder: RunFolder, config: TrainConfig) -> None:
    if not folder.config.exists():
        others = sorted(p.name for p in folder.path.iterdir() if not p.name.startswith("."))
        others = [name for name in others if not name.endswith(".partial")]
        if others:
            raise UserError(
                f"{folder.path} is no run folder but holds {others[0]!r}; give another --run"
            )
        return
    changed = differences(folder.read_config(), config)
    if changed:
        raise UserError(
            f"{folder.path} holds a run of another configuration ({'; '.join(changed)});"
            f" to continue it, leave these settings as they were; to start afresh, give another"
            f" --run or remove {folder.path}"
        )
