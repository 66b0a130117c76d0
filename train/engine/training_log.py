"""What is logged of the steps of a run, such that the lines go on as if it had never been cut."""

from typing import Any

import numpy as np

from natjax.train import console
from natjax.train.engine.finite import HostScalars
from natjax.train.engine.task import Scores
from natjax.train.engine.trainer import Trainer
from natjax.train.reporting.metrics import MetricsWriter
from natjax.train.reporting.progress import ProgressDisplay, Shown
from natjax.train.reporting.throughput import Interval, Throughput, peak_memory, utilisation

# Scalars that are no means over the steps of a line.
_NO_MEANS = ("learning_rate", "skipped")


class TrainingLog:
    """Scalars of the steps since the last line, and what else a checkpoint keeps of the log.

    Args of the constructor: parts of the run, and the ``meta`` of the checkpoint from which it goes
    on, empty for a new run.

    Attributes:
      evaluated: False where the evaluation after the last step was put off, to stop in time.
      skipped_in_a_row: Updates that were left out last.
      throughput: How fast the run is.
    """

    def __init__(self, trainer: Trainer, meta: dict[str, Any]):
        kept = meta.get("log", {})
        self._trainer = trainer
        self._steps: list[HostScalars] = list(kept.get("steps", []))
        self._flops = trainer.task.example_flops()
        self.evaluated: bool = kept.get("evaluated", True)
        self.skipped_in_a_row: int = kept.get("skipped", 0)
        self.throughput = Throughput(trainer.config.batch_size)

    def to_json(self) -> dict[str, Any]:
        """Return JSON values for ``meta``; float32 values come back with every bit."""
        steps = [{name: float(value) for name, value in step.items()} for step in self._steps]
        return {
            "steps": steps,
            "evaluated": self.evaluated,
            "skipped": self.skipped_in_a_row,
        }

    def add(self, scalars: list[HostScalars]) -> None:
        """Take the scalars of some more steps."""
        self._steps += scalars

    def write(self, step: int, metrics: MetricsWriter, display: ProgressDisplay) -> None:
        """Write and show a line about the steps since the last one, and begin the next."""
        good = [values for values in self._steps if not values.get("skipped")]
        skipped, last = len(self._steps) - len(good), self._steps[-1]
        means = {name: _mean(good, name) for name in _order(last) if name not in _NO_MEANS}
        unit, interval = self._trainer.task.unit, self.throughput.end_interval(step)
        mfu = None if interval is None else self._utilisation(interval.rate)
        memory = peak_memory(self._trainer.mesh.local_devices)
        epoch = round(self._trainer.epoch(step), 4)
        metrics.write(
            kind="train",
            step=step,
            epoch=epoch,
            **means,
            learning_rate=float(last["learning_rate"]),
            **({"skipped": skipped} if "skipped" in last else {}),
            **(_numbers(interval, unit) if interval is not None else {}),
            **({"mfu": round(mfu, 4)} if mfu is not None else {}),
            **({"peak_memory_bytes": memory} if memory is not None else {}),
        )
        self._steps = []
        shown = Shown(
            step=step,
            epoch=epoch,
            quantities=self._in_words(means),
            learning_rate=float(last["learning_rate"]),
            interval=interval,
            unit=unit,
            mfu=mfu,
            memory=memory,
            left=self.throughput.seconds_left(step, self._trainer.total_steps),
            skipped=skipped,
        )
        display.show(shown)
        if skipped:
            console.warn(
                f"{skipped} updates up to step {step} were left out: the loss or its gradient was"
                " not finite"
            )

    def write_scores(self, step: int, results: dict[str, Scores], metrics: MetricsWriter) -> None:
        """Write and show the scores after a step."""
        epoch = round(self._trainer.epoch(step), 4)
        for weights, scores in results.items():
            metrics.write(kind="eval", step=step, epoch=epoch, weights=weights, **scores.values)
        self.evaluated = True
        task = self._trainer.task
        text = f"step {step:>6}  test {task.show_primary(results['raw'])}"
        if "ema" in results:
            text += f", averaged weights {task.show_primary(results['ema'])}"
        console.say(text)

    def _in_words(self, means: dict[str, float | None]) -> list[str]:
        return [
            f"{quantity.title} {means[name]:{quantity.format}}"
            for name, quantity in self._trainer.task.quantities.items()
            if means.get(name) is not None
        ]

    def _utilisation(self, rate: float) -> float | None:
        devices = list(self._trainer.mesh.devices.flat)
        if self._flops is None:
            return None
        return utilisation(self._flops, rate, devices[0].device_kind, len(devices))


def _numbers(interval: Interval, unit: str) -> dict[str, float]:
    return {
        f"{unit}_per_second": round(interval.rate, 1),
        "data_wait": round(interval.data_wait, 4),
    }


def _order(scalars: HostScalars) -> list[str]:
    """The loss first, then what the task logs, then the norm of the gradient."""
    ends = ("loss", "grad_norm")
    return ["loss", *(name for name in scalars if name not in ends), "grad_norm"]


def _mean(steps: list[HostScalars], name: str) -> float | None:
    """Mean over steps; None where every one was left out."""
    if not steps:
        return None
    return float(np.mean([values[name] for values in steps], dtype=np.float64))
