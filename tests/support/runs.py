"""What a run left in its folder, for comparisons."""

import json
from pathlib import Path
from typing import Any

from natjax.train.checkpoint.checkpointer import restore
from natjax.train.checkpoint.run_folder import RunFolder
from natjax.train.engine.trainer import Trainer, build_trainer
from natjax.train.tasks.registry import read_run

_CLOCK = {"images_per_second", "data_wait", "mfu", "peak_memory_bytes"}


def metrics(run: Path, clock: bool = False) -> list[dict[str, Any]]:
    """Return the lines of metrics, without what depends on the clock."""
    lines = [json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in line.items() if clock or name not in _CLOCK}
        for line in lines
    ]


def trainer_of(run: Path) -> Trainer:
    """Return the parts of a run."""
    task, config = read_run(RunFolder(run))
    return build_trainer(task.build(config))


def final_state(run: Path) -> dict[str, Any]:
    """Return the items of the newest checkpoint."""
    restored = restore(run / "checkpoints", trainer_of(run).compiled.target.items())
    assert restored is not None
    return restored.items
