"""Several sets of weights are evaluated on the same batches, whose threads then end."""

import jax.numpy as jnp
import numpy as np
import pytest

from natjax.train.config.settings import MeshConfig, RunConfig
from natjax.train.engine.compile import CompiledEvaluation
from natjax.train.engine.evaluate import evaluate
from natjax.train.engine.sharding import batch_sharding, make_mesh
from natjax.train.engine.task import Scores, Task


class Batches:
    """Three batches; takes note of what was read, and of the end."""

    def __init__(self):
        self.read, self.closed = 0, 0

    def __iter__(self):
        return self

    def __next__(self):
        if self.read == 3:
            raise StopIteration
        self.read += 1
        return {"id": np.full(8, self.read, np.int32)}

    def close(self):
        self.closed += 1


class Collector:
    def __init__(self):
        self.seen = []

    def add(self, measured):
        self.seen.append(int(measured["id"][0]))

    def result(self):
        return Scores(values={"seen": len(self.seen)}, primary="seen", detail=self.seen)


class Numbers(Task[RunConfig]):
    """Nothing but an evaluator."""

    init = loss = predict = train_size = train_batches = eval_batches = None
    evaluator = staticmethod(Collector)


def compiled(measure):
    sharding = batch_sharding(make_mesh(MeshConfig(data=8)))
    return CompiledEvaluation(batch=sharding, measure=measure, pictured=measure)


def test_all_weights_see_the_same_batches_which_are_read_once():
    batches = Batches()
    measure = compiled(lambda params, statistics, batch: {"id": batch["id"] * params["factor"]})
    weights = {"raw": ({"factor": jnp.array(1)}, {}), "ema": ({"factor": jnp.array(10)}, {})}
    found = evaluate(Numbers(RunConfig()), measure, weights, batches)
    assert found["raw"].detail == [1, 2, 3]
    assert found["ema"].detail == [10, 20, 30]
    assert (batches.read, batches.closed) == (3, 1)


def test_batches_end_with_an_evaluation_that_fails():
    def fails(*_):
        raise ValueError("no memory")

    batches = Batches()
    with pytest.raises(ValueError, match="no memory"):
        evaluate(Numbers(RunConfig()), compiled(fails), {"raw": ({}, {})}, batches)
    assert (batches.read, batches.closed) == (1, 1)
