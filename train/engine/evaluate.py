"""Scores over every held-out example, exact for any batch size and any number of hosts."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax

from natjax.train.engine.compile import CompiledEvaluation
from natjax.train.engine.network import Params, Statistics
from natjax.train.engine.sharding import put_batch
from natjax.train.engine.task import HostBatch, Scores, Task

Weights = Mapping[str, tuple[Params, Statistics]]


@contextlib.contextmanager
def closed[T](batches: Iterator[T]) -> Iterator[Iterator[T]]:
    """Close an iterator at the end, where it can be: its threads and workers then end too."""
    try:
        yield batches
    finally:
        getattr(batches, "close", lambda: None)()


def evaluate(
    task: Task[Any], compiled: CompiledEvaluation, weights: Weights, batches: Iterable[HostBatch]
) -> dict[str, Scores]:
    """Evaluate several sets of weights on the same batches, each of which is read once.

    Args:
      task: The task.
      compiled: Its functions.
      weights: Parameters and statistics by name, such as ``"raw"`` and ``"ema"``.
      batches: As `Task.eval_batches` has them; masked examples do not count.

    Raises:
      NoExamplesError: no example counts.
    """
    evaluators = {name: task.evaluator() for name in weights}
    with closed(iter(batches)) as made:
        for batch in made:
            rows = put_batch(batch, compiled.batch)
            for name, values in weights.items():
                evaluators[name].add(jax.device_get(compiled.measure(*values, rows)))
    return {name: evaluator.result() for name, evaluator in evaluators.items()}


def best_of(results: Mapping[str, Scores]) -> Scores:
    """Return the scores that decide: of the averaged weights (``"ema"``) where there are any.

    Args:
      results: By ``"raw"`` and ``"ema"``.
    """
    return results.get("ema", results["raw"])
