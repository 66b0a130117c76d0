"""The folder of a run: what is in it, whose it is, and whether it may be continued."""

import contextlib
import dataclasses
import fcntl
import json
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from natjax.train import console
from natjax.train.cluster import processes
from natjax.train.config.continuing import Rules, compare
from natjax.train.config.serialization import read_config_file
from natjax.train.errors import UserError
from natjax.train.files import require_local, write_whole

_SHARED_SECONDS = 20


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
    def curves(self) -> Path:
        """Picture of the learning curves."""
        return self.path / "curves.png"

    def read_config(self) -> dict[str, Any]:
        """Return the settings of the run, with the name of its task under ``task``.

        Raises:
          UserError: there is no run here, or its configuration cannot be read.
        """
        require_local("RUN", self.path)
        if not self.config.exists():
            raise UserError(
                f"{self.path} is no run folder (it has no config.json);"
                " `natjax train PRESET --run FOLDER` makes one"
            )
        return read_config_file(self.config)

    def write_config(self, settings: dict[str, Any]) -> None:
        """Write settings as `read_config` returns them; the file is replaced at once."""
        write_whole(self.config, json.dumps(settings, indent=2) + "\n")


@contextlib.contextmanager
def open_run_folder(path: Path, settings: dict[str, Any], rules: Rules) -> Iterator[RunFolder]:
    """Make or continue the run folder at `path`, for this job alone.

    Process 0 makes, checks and locks it; the others see whether they have the same folder.

    Args:
      path: The folder; made where missing.
      settings: What is to be run, as JSON values, with the name of the task.
      rules: What becomes of settings that differ from those of the run that is there.

    Raises:
      UserError: another run has the folder, it belongs to another configuration (the differences
        are shown), it holds something else, or it is not the same folder in all processes.
    """
    folder = RunFolder(path)
    with contextlib.ExitStack() as stack:
        processes.first(lambda: _lock(folder, settings, rules, stack))
        _check_shared(path)
        yield folder


def _lock(
    folder: RunFolder,
    settings: dict[str, Any],
    rules: Rules,
    stack: contextlib.ExitStack,
) -> None:
    folder.path.mkdir(parents=True, exist_ok=True)
    lock = stack.enter_context((folder.path / ".lock").open("w"))
    # The kernel lets go when the process ends, however it ends.
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(
            f"{folder.path} is in use by another run; wait, or give another --run"
        ) from error
    _check_same(folder, settings, rules)
    folder.write_config(settings)


def _check_shared(path: Path) -> None:
    """Refuse a folder that some process does not see, where checkpoints would go to pieces."""
    if processes.count() == 1:
        return
    token = path / f".job-{processes.first(lambda: secrets.token_hex(8))}"
    try:
        processes.first(token.touch)
        problem = None if _appears(token) else f"does not see {path.absolute()}"
        if problem := processes.any_problem(problem):
            processes.first(lambda: _refuse(path, problem))
    finally:
        if processes.index() == 0:
            token.unlink(missing_ok=True)


def _appears(path: Path) -> bool:
    # Network storage may show a new file a little later.
    for _ in range(_SHARED_SECONDS):
        if path.exists():
            return True
        time.sleep(1)
    return False


def _refuse(path: Path, problem: str) -> None:
    raise UserError(
        f"--run must be a folder that all processes share, got {path}: {problem}"
        " as process 0 has it"
    )


def _check_same(folder: RunFolder, settings: dict[str, Any], rules: Rules) -> None:
    if not folder.config.exists():
        others = sorted(p.name for p in folder.path.iterdir() if not p.name.startswith("."))
        others = [name for name in others if not name.endswith(".partial")]
        if others:
            raise UserError(
                f"{folder.path} is no run folder but holds {others[0]!r}; give another --run"
            )
        return
    found = compare(folder.read_config(), settings, rules)
    if found.refused:
        raise UserError(
            f"{folder.path} holds a run of another configuration ({'; '.join(found.refused)});"
            f" to continue it, leave these settings as they were; to start afresh, give another"
            f" --run or remove {folder.path}"
        )
    for change in found.told:
        console.say(f"Continuing {folder.path} with {change}")
