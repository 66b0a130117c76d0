"""How fast an input pipeline is: the command ``natjax data bench``."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import psutil
from rich.table import Table

from natjax.train import console
from natjax.train.config.settings import DataConfig
from natjax.train.data.pipeline import Batch
from natjax.train.errors import UserError

_SAMPLE = 200

# As `natjax.train.engine.task.Task.input_stages` has them.
type Stages = Mapping[str, Callable[[Any], Any]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurement:
    """What was measured.

    Attributes:
      data: How the data were read.
      images: Images that were made.
      seconds: Time that passed.
      cpu_seconds: Time of all cores together that was spent on it.
      stages: Milliseconds an image of each stage, on one core.
    """

    data: DataConfig
    images: int
    seconds: float
    cpu_seconds: float
    stages: dict[str, float]

    @property
    def rate(self) -> float:
        """Images a second."""
        return self.images / self.seconds

    @property
    def rate_per_core(self) -> float:
        """Images a second of each core that does nothing else."""
        return self.images / self.cpu_seconds

    def cores(self, rate: float) -> int:
        """Cores that feed a number of images a second."""
        return math.ceil(rate / self.rate_per_core)


def measure(
    batches: Iterator[Batch], data: DataConfig, stages: dict[str, float], *, seconds: float = 10.0
) -> Measurement:
    """Take batches for some time, without a network.

    Args:
      batches: From the pipeline; closed at the end.
      data: How they are read.
      stages: As `time_stages` returns them.
      seconds: How long.

    Raises:
      UserError: there is no time to measure in.
    """
    if seconds <= 0:
        raise UserError(f"--seconds must be positive, got {seconds}")
    try:
        for _ in range(2 + 2 * data.workers):  # started, and what is ahead is taken
            next(batches)
        began, before, images = time.perf_counter(), _cpu_seconds(), 0
        while time.perf_counter() - began < seconds:
            images += len(next(iter(next(batches).values())))
        passed, spent = time.perf_counter() - began, _cpu_seconds() - before
    finally:
        getattr(batches, "close", lambda: None)()
    return Measurement(
        data=data,
        images=images,
        seconds=passed,
        cpu_seconds=max(spent, 1e-9),
        stages=stages,
    )


def _cpu_seconds() -> float:
    """Time of all cores that this process and its workers have had."""
    total, here = 0.0, psutil.Process()
    for process in (here, *here.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def time_stages(stages: Stages, count: int, seed: int) -> dict[str, float]:
    """Return the milliseconds of each stage, over examples at random places.

    The first stage reads, and counts what it waits, too. Examples that cannot be read are left out.

    Args:
      stages: What is done with an example.
      count: Number of records.
      seed: Of the places.
    """
    rng = np.random.default_rng(seed)
    found, taken = dict.fromkeys(stages, 0.0), 0
    for place in rng.integers(0, count, _SAMPLE).tolist():
        times = _times_of(stages, place)
        if times is not None:
            taken += 1
            found = {name: total + times[name] for name, total in found.items()}
    return {name: 1e3 * total / max(taken, 1) for name, total in found.items()}


def _times_of(stages: Stages, place: int) -> dict[str, float] | None:
    value: Any = place
    times, clock = {}, time.perf_counter
    for name, run in stages.items():
        began = clock()
        try:
            value = run(value)
        except Exception:  # decoders of damaged files, and disks, raise nearly anything
            return None
        times[name] = clock() - began
        clock = time.thread_time
    return times


def show_measurement(measured: Measurement, title: str, rate: float | None = None) -> None:
    """Print a measurement.

    Args:
      measured: What was measured.
      title: Of the table.
      rate: Images a second that a step needs; the cores for it are named.
    """
    data = measured.data
    table = Table(title=title, title_justify="left")
    for heading in ("threads", "workers", "images/s", "cores busy", "images/s a core"):
        table.add_column(heading, justify="right")
    busy = measured.cpu_seconds / measured.seconds
    table.add_row(
        str(data.threads),
        str(data.workers),
        f"{measured.rate:,.0f}",
        f"{busy:.1f}",
        f"{measured.rate_per_core:,.0f}",
    )
    console.say(table)
    if measured.stages:
        total = sum(measured.stages.values()) or math.inf
        parts = (f"{x} {ms:.2f} ms ({ms / total:.0%})" for x, ms in measured.stages.items())
        console.say(f"an image on one core: {', '.join(parts)}")
    if rate:
        cores = measured.cores(rate)
        console.say(
            f"{rate:,.0f} images/s need {cores} cores of this kind, such as --data.workers {cores}"
        )
