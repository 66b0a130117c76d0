"""Scores of checkpoints, and which checkpoints are worth keeping.

Scores are in one file beside the checkpoints and not inside them: a score may come later, when an
evaluation that was put off is made up for, and a checkpoint never changes once it is whole.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from orbax.checkpoint import v1 as ocp

from natjax.train.cluster import processes
from natjax.train.config.settings import CheckpointConfig
from natjax.train.files import write_whole


class Scores:
    """The scores in a file, and Orbax's policy of what to keep: the newest and the best.

    Args of the constructor: the file, which need not exist, and how many to keep.
    """

    def __init__(self, file: Path, config: CheckpointConfig):
        self._file, self._config = file, config
        found = processes.first(lambda: _read(file))
        self._scores = {int(step): score for step, score in found.items()}

    def record(self, step: int, score: float | None, steps: Iterable[int]) -> None:
        """Set the score of one checkpoint; the file is replaced at once.

        Args:
          step: The checkpoint, which may still be to be saved.
          score: Larger is better; None never counts as best.
          steps: All checkpoints there are; scores of others are forgotten.

        Raises:
          OSError: the file cannot be written.
        """
        there = set(steps) - {step}
        self._scores = {old: value for old, value in self._scores.items() if old in there}
        if score is not None:
            self._scores[step] = score
        if processes.index() == 0:
            write_whole(self._file, json.dumps(self._scores))

    def worth_keeping(self, steps: Iterable[int]) -> set[int]:
        """Return which of the checkpoints to keep; of equal scores, the newer counts more."""
        steps = sorted(steps)
        rated = [step for step in steps if step in self._scores]
        best = sorted(rated, key=lambda step: (self._scores[step], step), reverse=True)
        return {*steps[-self._config.keep_latest :], *best[: self._config.keep_best]}

    def should_preserve(
        self,
        checkpoints: Sequence[Any],
        *,
        context: ocp.training.preservation_policies.PreservationContext,
    ) -> list[bool]:
        """Answer Orbax, which asks while it saves; see `worth_keeping`."""
        del context
        kept = self.worth_keeping(checkpoint.step for checkpoint in checkpoints)
        return [checkpoint.step in kept for checkpoint in checkpoints]


def _read(file: Path) -> dict[str, float]:
    """Return the scores by step; none where the file is missing or damaged."""
    try:
        found = json.loads(file.read_text())
        return {str(int(step)): float(score) for step, score in found.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
