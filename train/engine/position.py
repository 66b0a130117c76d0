"""Where a run was in its metrics when it was saved, so that the lines go on as if never cut."""

import dataclasses
from typing import Any

from natjax.train.engine.finite import HostScalars


@dataclasses.dataclass(frozen=True, kw_only=True)
class Position:
    """Part of the ``meta`` of a checkpoint.

    Attributes:
      window: Scalars of the steps since the last line of metrics.
      evaluated: False where the evaluation after the step was put off, to stop in time.
      skipped: Updates in a row that were left out.
    """

    window: list[HostScalars] = dataclasses.field(default_factory=list)
    evaluated: bool = True
    skipped: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return JSON values; float32 values come back with every bit."""
        window = [{name: float(value) for name, value in step.items()} for step in self.window]
        return {"window": window, "evaluated": self.evaluated, "skipped": self.skipped}


def read_position(meta: dict[str, Any]) -> Position:
    """Return what `Position.to_json` put into the ``meta`` of a checkpoint."""
    return Position(**meta.get("position", {}))
