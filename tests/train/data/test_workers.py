"""Batches go on where a worker process has died; Grain's error stands for the death here."""

import pytest

from natjax.train.data.workers import restart_workers
from natjax.train.errors import TrainingError

DEATH = "Worker process was terminated unexpectedly with exit code -9. Search the logs above."


class Source:
    """Yields steps; `deaths` counts how often the worker still dies at a step."""

    def __init__(self, deaths: dict[int, int]):
        self.deaths, self.closed = dict(deaths), 0

    def __call__(self, start: int):
        return Stream(self, start)


class Stream:
    def __init__(self, source: Source, step: int):
        self.source, self.step = source, step

    def __next__(self) -> int:
        if self.source.deaths.get(self.step, 0):
            self.source.deaths[self.step] -= 1
            raise RuntimeError(DEATH)
        self.step += 1
        return self.step - 1

    def __iter__(self):
        return self

    def close(self) -> None:
        self.source.closed += 1


def take(source: Source, start: int, count: int) -> list[int]:
    batches = restart_workers(source, start)
    taken = [next(batches) for _ in range(count)]
    batches.close()
    return taken


def test_batches_go_on_at_the_step_where_a_worker_died(capsys):
    source = Source({7: 2})
    assert take(source, 5, 6) == [5, 6, 7, 8, 9, 10]
    assert source.closed == 3
    assert capsys.readouterr().err == 2 * (
        "natjax: a data worker process was killed (with exit code -9) before step 8; starting the"
        " workers again\n"
    )


def test_deaths_far_apart_are_forgiven(capsys):
    source = Source(dict.fromkeys(range(0, 1000, 50), 1))
    assert take(source, 0, 1000) == list(range(1000))


def test_workers_that_die_again_and_again_stop_the_run(capsys):
    with pytest.raises(TrainingError, match=r"the 4th within 100 .*same command continues"):
        take(Source({7: 99}), 0, 10)


def test_too_little_shared_memory_is_told_at_once():
    def full(start):
        yield start
        raise RuntimeError(DEATH.replace("-9", "-7"))

    advice = r"exit code -7\) before step 2: the shared memory /dev/shm .*--shm-size.*workers 0"
    with pytest.raises(TrainingError, match=advice):
        list(restart_workers(full, 0))


def test_other_errors_are_not_disguised():
    def broken(start):
        yield start
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        list(restart_workers(broken, 0))


def test_an_end_is_an_end():
    assert list(restart_workers(lambda start: iter(range(start, 5)), 2)) == [2, 3, 4]
