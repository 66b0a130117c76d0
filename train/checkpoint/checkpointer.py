"""Saving and restoring runs: all of Orbax is behind this module.

A checkpoint is a folder named by its step with an item for each part of the state, and ``meta``.
It is written under another name in the background and
renamed when whole. Checksums of its files follow in ``sums/``, and ``meta`` holds a fingerprint of
the values of every item: damage is noticed, not trained on. Scores are in ``scores.json``.
"""

import contextlib
import dataclasses
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from orbax.checkpoint import v1 as ocp

from natjax.train import console
from natjax.train.checkpoint.integrity import find_damage, fingerprint, write_sums
from natjax.train.checkpoint.scores import Scores
from natjax.train.cluster import processes
from natjax.train.cluster.failure import leave_note
from natjax.train.config.settings import CheckpointConfig
from natjax.train.errors import UserError, storage_problem


@dataclasses.dataclass(frozen=True)
class Restored:
    """What a checkpoint held.

    Attributes:
      step: Steps done.
      items: The asked ones.
      meta: What `CheckpointWriter.save` was given, and ``fingerprints``.
    """

    step: int
    items: dict[str, Any]
    meta: dict[str, Any]


class CheckpointWriter:
    """Saves in the background; keeps the newest and the best. A context manager.

    Leaving the context waits until all is on disk, unless an exception is under way.
    """

    def __init__(self, folder: Path, config: CheckpointConfig):
        self._folder = folder.absolute()
        processes.first(self._try_to_write)
        self._scores = Scores(self._folder / "scores.json", config)
        self._checkpointer = ocp.training.Checkpointer(
            self._folder, preservation_policy=self._scores, cleanup_tmp_directories=True
        )
        self._open = contextlib.ExitStack()
        # Reading a checkpoint again takes as long as writing it: steps do not wait for that.
        self._summing = self._open.enter_context(ThreadPoolExecutor(1, "natjax-checksums"))
        self._sums = self._summing.submit(self._update_sums)
        if processes.count() > 1:
            self._open.enter_context(_failed_writes(self._tell_all))

    def save(
        self, step: int, items: dict[str, Any], meta: dict[str, Any], score: float | None
    ) -> None:
        """Begin to save; returns once the values are copied, so that arrays may be donated.

        Args:
          step: Steps done, which name the checkpoint.
          items: Trees of arrays by name.
          meta: JSON values.
          score: Larger is better; None never counts as best.

        Raises:
          UserError: this or the previous checkpoint could not be written.
        """
        marks = {name: fingerprint(item) for name, item in items.items()}
        content = items | {"meta": meta | {"fingerprints": marks}}
        try:
            self._finish_writing()
            self._scores.record(step, score, self._steps())
            self._checkpointer.save_checkpointables_async(step, content, force=True)
        except Exception as error:
            raise self._explain(error) from error

    def rate(self, step: int, score: float) -> None:
        """Give a checkpoint its score, and drop those that this makes not worth keeping.

        Args:
          step: A checkpoint that was saved without score.
          score: Larger is better.

        Raises:
          UserError: the score could not be written, or the previous checkpoint.
        """
        try:
            self._finish_writing()
            self._scores.record(step, score, self._steps())
            for old in set(self._steps()) - self._scores.worth_keeping(self._steps()):
                self._checkpointer.delete(old, missing_ok=True)
            self._finish()
        except Exception as error:
            raise self._explain(error) from error

    def wait(self) -> None:
        """Wait until the last checkpoint is on disk.

        Raises:
          UserError: it could not be written.
        """
        try:
            self._finish()
        except Exception as error:
            raise self._explain(error) from error

    def newest(self) -> str:
        """Say what there is to go back to, once what is being saved is on disk."""
        self.wait()
        steps = list_steps(self._folder)
        if not steps:
            return "no checkpoint was saved before it"
        return f"the last good checkpoint is of step {steps[-1]} ({self._folder / str(steps[-1])})"

    def _try_to_write(self) -> None:
        # Now, and not after hours, when the first checkpoint is due.
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self._folder):
                pass
        except OSError as error:
            raise self._explain(error) from error

    def _steps(self) -> list[int]:
        return [checkpoint.step for checkpoint in self._checkpointer.checkpoints]

    def _finish(self) -> None:
        """Wait until checkpoints and checksums are written."""
        self._finish_writing()
        self._sums.result()

    def _finish_writing(self) -> None:
        """Wait until checkpoints are written; begin to sum the newest up."""
        self._checkpointer.wait()
        self._sums.result()  # those of the checkpoint before, which are written long since
        self._sums = self._summing.submit(self._update_sums)

    def _update_sums(self) -> None:
        if processes.index() == 0:
            _update_sums(self._folder)

    def _tell_all(self, error: BaseException) -> None:
        explained = self._explain(error)
        if explained is not error:
            leave_note(explained)

    def _explain[Error: BaseException](self, error: Error) -> Error | UserError:
        reason = storage_problem(error)
        if reason is None:
            return error
        steps = list_steps(self._folder)
        last = f"the last whole one is of step {steps[-1]}" if steps else "there is none yet"
        return UserError(
            f"cannot write a checkpoint to {self._folder}: {reason}; {last}."
            " Put that right and run the same command again"
        )

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._open:
            if kind is None:
                self.wait()
            try:
                self._checkpointer.close()
            except Exception:
                # Closing tells of a failed save once more; the first telling is on its way already.
                if kind is None:
                    raise


@contextlib.contextmanager
def _failed_writes(tell: Callable[[BaseException], None]) -> Iterator[None]:
    """Call `tell` with the errors that Orbax logs, which are not printed.

    With several processes its log is the only place where a failed write shows at once: before it
    raises, it waits for the others, who wait for this one's part of the checkpoint, for 20 minutes.
    """

    def look(record: logging.LogRecord) -> bool:
        if record.exc_info and record.exc_info[1] is not None:
            tell(record.exc_info[1])
        return record.levelno > logging.ERROR

    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    logger.addFilter(look)
    try:
        yield
    finally:
        logger.removeFilter(look)
        logger.setLevel(level)


def list_steps(folder: Path) -> list[int]:
    """Return the steps of whole checkpoints, oldest first; partial ones have other names."""
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())


def _sums_file(folder: Path, step: int) -> Path:
    return folder / "sums" / f"{step}.json"


def _update_sums(folder: Path) -> None:
    steps = list_steps(folder)
    for step in steps:
        if not _sums_file(folder, step).exists():
            with contextlib.suppress(FileNotFoundError):  # deleted meanwhile: not worth keeping
                write_sums(folder / str(step), _sums_file(folder, step))
    for path in (folder / "sums").glob("*.json"):
        if int(path.stem) not in steps:
            path.unlink()


def restore(
    folder: Path, target: dict[str, Any], *, step: int | None = None, set_aside: Path | None = None
) -> Restored | None:
    """Return the newest checkpoint that is sound, or None where there is no checkpoint at all.

    A damaged one is reported on standard error, and its predecessor tried. Process 0 looks for
    damage; all processes take the same checkpoint, which must be sound in all.

    Args:
      folder: Where `CheckpointWriter` wrote.
      target: Items to restore, as arrays or `jax.ShapeDtypeStruct`; shardings are respected, so a
        run may go on upon another mesh.
      step: Only this checkpoint.
      set_aside: Move damaged checkpoints there, since a run that goes on will write the same steps.

    Raises:
      UserError: there are checkpoints and none is sound, or `step` is not among them.
    """
    steps = processes.first(lambda: list_steps(folder))
    if step is not None and step not in steps:
        raise UserError(f"{folder} has no checkpoint of step {step}, but of {steps}")
    chosen = [step] if step is not None else steps[::-1]
    for candidate in chosen:
        restored, problem = _try_load(folder.absolute(), candidate, target)
        problem = processes.any_problem(problem)
        if problem is None:
            return restored
        _report_damage(folder / str(candidate), problem, set_aside)
        processes.wait("damaged checkpoint is out of the way")
    if chosen:
        raise UserError(
            f"no sound checkpoint in {folder}; to begin anew, give another --run or remove {folder}"
        )
    return None


def _try_load(
    folder: Path, step: int, target: dict[str, Any]
) -> tuple[Restored | None, str | None]:
    """Return what the checkpoint holds, or what is wrong with it."""
    damage = processes.first(lambda: find_damage(folder / str(step), _sums_file(folder, step)))
    if damage is not None:
        return None, damage if processes.index() == 0 else None
    try:
        return _load(folder, step, target), None
    except Exception as error:
        return None, (str(error).splitlines() or [type(error).__name__])[0][:200]


def _load(folder: Path, step: int, target: dict[str, Any]) -> Restored:
    loaded = ocp.load_checkpointables(folder / str(step), target | {"meta": None})
    meta = loaded.pop("meta")
    for name, item in loaded.items():
        if fingerprint(item) != meta["fingerprints"][name]:
            raise ValueError(f"values of {name!r} differ from what was saved")
    return Restored(step, loaded, meta)


def _report_damage(path: Path, problem: str, set_aside: Path | None) -> None:
    text = f"checkpoint {path} is damaged ({problem}); trying the one before"
    if set_aside is not None and processes.index() == 0:
        set_aside.mkdir(parents=True, exist_ok=True)
        place = set_aside / path.name
        if place.exists():
            shutil.rmtree(place)
        path.rename(place)
        _sums_file(path.parent, int(path.name)).unlink(missing_ok=True)
        text += f"; it was moved to {place}"
    console.warn(text)
