"""How fast the input pipeline of a configuration is: the command ``natjax data bench``."""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil
from rich.table import Table

from natjax.train import console
from natjax.train.config.settings import TrainConfig
from natjax.train.data.datasets import DatasetSpec, Source, get_spec, open_dataset, open_split
from natjax.train.data.images import add_border
from natjax.train.data.pipeline import Host, train_batches, train_dataset
from natjax.train.data.readable import Readable
from natjax.train.errors import UserError
from natjax.train.tasks.classification.augment.pipeline import TrainTransform

_SAMPLE = 200


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurement:
    """What was measured.

    Attributes:
      config: The configuration.
      images: Images that were made.
      seconds: Time that passed.
      cpu_seconds: Time of all cores together that was spent on it.
      stages: Milliseconds an image of each stage, on one core.
    """

    config: TrainConfig
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


def measure(config: TrainConfig, *, seconds: float = 10.0) -> Measurement:
    """Run the real pipeline of a configuration, without a network.

    Args:
      config: The configuration; its data set is prepared first where that is done on the way.
      seconds: How long.

    Raises:
      UserError: the data set is not there.
    """
    if seconds <= 0:
        raise UserError(f"--seconds must be positive, got {seconds}")
    spec = get_spec(config.data)
    source = open_split(open_dataset(spec, config.data), spec.train_split)
    dataset = train_dataset(
        source,
        spec,
        config.data,
        config.augment,
        seed=config.seed,
        batch_size=config.batch_size,
        host=Host(),
    )
    batches = train_batches(dataset, config.data, 0)
    try:
        for _ in range(2 + 2 * config.data.workers):  # started, and what is ahead is taken
            next(batches)
        began, before, images = time.perf_counter(), _cpu_seconds(), 0
        while time.perf_counter() - began < seconds:
            images += len(next(batches)["label"])
        passed, spent = time.perf_counter() - began, _cpu_seconds() - before
    finally:
        getattr(batches, "close", lambda: None)()
    return Measurement(
        config=config,
        images=images,
        seconds=passed,
        cpu_seconds=max(spent, 1e-9),
        stages=_stages(source, spec, config),
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


def _stages(source: Source, spec: DatasetSpec, config: TrainConfig) -> dict[str, float]:
    """Milliseconds an image, of images at random places; reading counts what it waits, too."""
    rng = np.random.default_rng(config.seed)
    transform = TrainTransform(augment=config.augment, data=config.data, mean=spec.mean)
    places = rng.integers(0, len(source), _SAMPLE).tolist()
    readable = Readable(_Kept(source), spec.channels, spec.train_split)
    found = {"read": 0.0, "decode": 0.0, "augment": 0.0}

    def timed(stage: str, run: Callable[[], Any], clock: Callable[[], float]) -> Any:
        began = clock()
        result = run()
        found[stage] += clock() - began
        return result

    for place in places:
        timed("read", lambda place=place: readable.source[place], time.perf_counter)
        record = timed("decode", lambda place=place: readable[place], time.thread_time)
        image = add_border(record["image"], spec.border)
        timed("augment", lambda image=image: transform(image, rng), time.thread_time)
    return {stage: 1e3 * total / len(places) for stage, total in found.items()}


class _Kept:
    """A source that gives the last record again without reading."""

    def __init__(self, source: Source):
        self._source, self._last = source, (-1, {})

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if self._last[0] != index:
            self._last = index, self._source[index]
        return self._last[1]


def show_measurement(measured: Measurement, rate: float | None = None) -> None:
    """Print a measurement.

    Args:
      measured: What was measured.
      rate: Images a second that a step needs; the cores for it are named.
    """
    data = measured.config.data
    table = Table(title=f"{data.name}, {data.image_size} px", title_justify="left")
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
    total = sum(measured.stages.values()) or math.inf
    parts = (f"{x} {ms:.2f} ms ({ms / total:.0%})" for x, ms in measured.stages.items())
    console.say(f"an image on one core: {', '.join(parts)}")
    if rate:
        cores = measured.cores(rate)
        console.say(
            f"{rate:,.0f} images/s need {cores} cores of this kind, such as --data.workers {cores}"
        )
