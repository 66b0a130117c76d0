"""What the engine asks of a task, and what it gives in return.

A task says what is learned from what: its network, its loss, its data, its scores. The engine
knows how: devices, steps, accumulation, averages, checkpoints, evaluation, metrics. Everything
here that takes arrays of the device is a pure function, traced and compiled by the engine; batches
are dicts of arrays whose first axis is that of the examples.
"""

import abc
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from flax import nnx

from natjax.train.cluster.processes import Host
from natjax.train.config.settings import RunConfig
from natjax.train.engine.network import Params, Statistics
from natjax.train.errors import UserError
from natjax.train.reporting.metrics import Panel, Quantity

Batch = dict[str, jax.Array]
HostBatch = dict[str, np.ndarray]
# What is done with an example, by name, one after the other.
Stages = Mapping[str, Callable[[Any], Any]]
# What a sum is divided by; a number where it is known before the program runs.
Weight = jax.Array | float | int
# A quantity to log: a sum and its weight, or a plain value, whose weight is 1.
Scalar = jax.Array | tuple[jax.Array, Weight]


class StepKeys(NamedTuple):
    """Random keys of a step, functions of seed and step alone.

    Attributes:
      network: For what the network draws; each part of an accumulated batch has its own.
      batch: For what is drawn once for the whole batch, alike on all devices.
      rows: For what is drawn for each example: fold its row in.
    """

    network: jax.Array
    batch: jax.Array
    rows: jax.Array


class Loss(NamedTuple):
    """The loss of a batch, or of a part of one.

    The gradient of a step is that of all sums divided by all weights, so a loss that is a mean over
    pixels has their number as weight. A loss that adds up means over different things has the
    number of examples, and its value times that as sum: parts then count by their examples.

    Attributes:
      sum: What is differentiated, float32.
      weight: What it is divided by, at least 0; no gradient flows through it. Where the weights of
        a whole batch are 0, the sum is not divided.
      statistics: The network's statistics after this batch.
      scalars: What to log besides, by name. Over the parts of a batch, sums are divided by weights;
        a line of metrics has the mean of its steps.
    """

    sum: jax.Array
    weight: Weight
    statistics: Statistics
    scalars: Mapping[str, Scalar]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParameterGroup:
    """How a parameter is trained.

    Attributes:
      learning_rate: Factor of the schedule's learning rate.
      weight_decay: Factor of the optimizer's weight decay.
      frozen: Whether it stays as it is; no gradient is computed, no optimizer state kept.
    """

    learning_rate: float = 1.0
    weight_decay: float = 1.0
    frozen: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores:
    """What an evaluation found.

    Attributes:
      values: Numbers by name, which go into the metrics; under `Task.unit`, how many examples.
      primary: Name of the one that ranks checkpoints.
      larger_is_better: Its direction.
      detail: What the task needs for its pictures, such as counts of mistakes.
    """

    values: Mapping[str, float | int]
    primary: str
    larger_is_better: bool = True
    detail: Any = dataclasses.field(default=None, repr=False, compare=False)

    @property
    def rank(self) -> float:
        """The primary score, with its sign such that larger is better."""
        value = float(self.values[self.primary])
        return value if self.larger_is_better else -value


@runtime_checkable
class Evaluator(Protocol):
    """Adds up, on the host, what is measured of the batches of a split."""

    def add(self, measured: Mapping[str, np.ndarray]) -> None:
        """Count a batch.

        Args:
          measured: What `Task.measure` returned: of the whole batch, in every process.
        """
        ...

    def result(self) -> Scores:
        """Return the scores of all batches.

        Raises:
          NoExamplesError: nothing has counted.
        """
        ...


class NoExamplesError(ValueError):
    """There is nothing to evaluate on."""


@dataclasses.dataclass(frozen=True)
class InitialWeights:
    """Values that take the place of drawn ones.

    Attributes:
      arrays: Parameters and statistics by name; those that are not here stay as drawn.
      report: What was taken, in words.
    """

    arrays: Mapping[str, np.ndarray]
    report: str


class Task[Config: RunConfig](abc.ABC):
    """What is learned from what. The constructor takes the configuration and opens no data.

    Attributes:
      config: The run.
      unit: What the examples are, in the plural.
      quantities: How numbers are shown, in this order: those of training steps on the line of
        progress, scores in tables. What is not here is in the metrics only.
      panels: Learning curves to draw.
    """

    unit: ClassVar[str] = "examples"
    quantities: ClassVar[Mapping[str, Quantity]] = {"loss": Quantity("loss", ".4f")}
    panels: ClassVar[tuple[Panel, ...]] = (Panel("loss", training="loss", score="loss"),)

    def __init__(self, config: Config):
        self.config = config

    # The network: pure functions.

    @abc.abstractmethod
    def init(self) -> tuple[Params, Statistics]:
        """Draw parameters and statistics, as functions of the seed."""

    def prepare(self, batch: Batch, keys: StepKeys) -> tuple[Batch, Batch]:
        """Prepare a whole training batch on the devices, before it is taken in parts.

        Returns:
          What has a row for each example, and what belongs to the whole batch. `loss` gets the rows
          of its part and all of the second, in one dict.
        """
        del keys
        return batch, {}

    @abc.abstractmethod
    def loss(self, params: Params, statistics: Statistics, batch: Batch, rngs: nnx.Rngs) -> Loss:
        """Return the loss of a training batch, or of a part of one.

        Args:
          params: Where the gradient is taken.
          statistics: As the batch, or the part, before this one has left them.
          batch: As `prepare` made it.
          rngs: Streams ``droppath`` and ``dropout``, and one for all other names.
        """

    @abc.abstractmethod
    def predict(self, params: Params, statistics: Statistics, batch: Batch) -> dict[str, jax.Array]:
        """Return what the network says of each example of an evaluation batch."""

    def measure(self, params: Params, statistics: Statistics, batch: Batch) -> dict[str, jax.Array]:
        """Return what the evaluator needs to know of an evaluation batch.

        By default the predictions, with the ``mask`` and ``id`` of the batch.
        """
        found = {name: batch[name] for name in ("mask", "id")}
        return found | self.predict(params, statistics, batch)

    def pictured(
        self, params: Params, statistics: Statistics, batch: Batch
    ) -> dict[str, jax.Array]:
        """Return what `pictures` is to know of the first evaluation batch.

        By default the predictions. Arrays have a row for each example, or for the first few.
        """
        return self.predict(params, statistics, batch)

    def parameter_group(self, name: str, shape: tuple[int, ...]) -> ParameterGroup:
        """Return how a parameter is trained; by default, vectors are not decayed.

        Args:
          name: Attributes of the network joined by dots, such as ``"head.kernel"``.
          shape: Its shape.
        """
        del name
        return ParameterGroup(weight_decay=float(len(shape) > 1))

    @property
    def recomputes(self) -> bool:
        """Whether the backward pass recomputes parts of the network, to take less memory."""
        return False

    def example_flops(self) -> int | None:
        """Return the multiply-adds of one example's forward pass; None where they are not known."""
        return None

    def initial_weights(self, source: str, shapes: Mapping[str, tuple[int, ...]]) -> InitialWeights:
        """Return what ``--init`` names.

        Args:
          source: A file, a URL, or the name of published weights.
          shapes: Of all parameters and statistics, by name.

        Raises:
          UserError: the task starts from scratch only.
          WeightsError: the weights cannot be found or read, or do not fit.
        """
        del shapes
        raise UserError(f"this task cannot start from weights, got --init {source}")

    # The data: on the host.

    @abc.abstractmethod
    def train_size(self) -> int:
        """Return how many examples make an epoch; opens the data.

        Raises:
          UserError: the data are missing or wrong.
        """

    @abc.abstractmethod
    def train_batches(self, start: int, host: Host) -> Iterator[HostBatch]:
        """Iterate over training batches without end; `close`, where there is one, ends it.

        Args:
          start: Steps done. A batch must be a function of seed and step alone.
          host: Which rows of the global batch to make: ``batch_size / host.count`` of them.
        """

    def input_stages(self) -> Stages:
        """Return what is done with a training example, for ``natjax data bench`` to time.

        Each stage gets what the one before has returned, the first a number below `train_size`;
        none, where this cannot be told.
        """
        return {}

    @abc.abstractmethod
    def eval_batches(self, host: Host) -> Iterable[HostBatch]:
        """Return batches that hold every held-out example once, in order, all of one size.

        They have ``mask``, False on rows that do not count, and ``id``, int32, which tells the
        examples apart. They may be iterated over again and again; ``len`` tells how many there are,
        for whom it helps, and ``close`` of an iterator, where there is one, ends it.
        `natjax.train.data.pipeline.test_batches` makes them, read ahead in bounded memory.
        """

    # The results: on the host.

    @abc.abstractmethod
    def evaluator(self) -> Evaluator:
        """Return what adds up an evaluation."""

    def unread(self, scores: Scores) -> int:
        """Return how many held-out examples an evaluation left out, as they cannot be read.

        Args:
          scores: What it found.
        """
        del scores
        return 0

    def details(self, scores: Scores) -> Any:
        """Return what to show below the scores of an evaluation, such as a table of classes.

        Args:
          scores: Of the weights that decide.

        Returns:
          A string or what Rich renders; None for nothing.
        """
        del scores
        return None

    def describe(self) -> list[tuple[str, str]]:
        """Return lines for the summary at the start of a run: a heading, and what it is about."""
        return []

    def title(self, scores: Scores) -> str:
        """Return a head line for pictures."""
        return f"{type(self).__name__}: {self.show(scores)}"

    def show(self, scores: Scores) -> str:
        """Return scores in words, as in ``"top-1 99.72%, top-5 100.00%"``."""
        shown = [
            f"{quantity.title} {scores.values[name]:{quantity.format}}"
            for name, quantity in self.quantities.items()
            if name in scores.values
        ]
        return ", ".join(shown)

    def show_primary(self, scores: Scores) -> str:
        """Return the primary score in words, as in ``"top-1 99.72%"``."""
        quantity = self.quantities.get(scores.primary, Quantity(scores.primary, ".4f"))
        return f"{quantity.title} {scores.values[scores.primary]:{quantity.format}}"

    def pictures(
        self, folder: Path, scores: Scores, sample: tuple[HostBatch, HostBatch] | None
    ) -> dict[str, Path]:
        """Write what there is to look at when a run ends, or after an evaluation.

        Args:
          folder: Where to write.
          scores: Of the averaged weights.
          sample: The first evaluation batch, and what `pictured` returned of it; None after an
            evaluation alone.

        Returns:
          The files by heading.
        """
        del folder, scores, sample
        return {}
