"""Running jobs, each in its own process: a compiler may abort, and must not take others along."""

from __future__ import annotations

import functools
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

_SECONDS = 300
_ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"}


def run[Item](
    job: Callable[[Item], dict[str, Any]],
    items: Sequence[Item],
    workers: int,
    *,
    seconds: float = _SECONDS,
) -> Iterator[dict[str, Any]]:
    """What ``job`` returns for each item, in order; where it fails, the reason under "error".

    Args:
      job: a function of a module, so that other processes find it.
      items: its arguments.
      workers: processes at a time.
      seconds: that a job may take.
    """
    os.environ.update(_ENVIRONMENT)
    # Forked from a process that has imported JAX and done nothing else: a job starts at once.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([job.__module__])
    with ThreadPoolExecutor(workers) as threads:
        yield from threads.map(functools.partial(_in_a_process, context, job, seconds), items)


def _in_a_process(
    context: Any, job: Callable[[Any], dict[str, Any]], seconds: float, item: Any
) -> dict[str, Any]:
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(job, item, sender))
    process.start()
    sender.close()
    try:
        if receiver.poll(seconds):
            return receiver.recv()
        process.kill()
        return {"error": f"took longer than {seconds:g} s"}
    except EOFError:
        process.join()
        return {"error": f"the compiler's process ended with exit code {process.exitcode}"}
    finally:
        process.join()


def _answer(job: Callable[[Any], dict[str, Any]], item: Any, sender: Any) -> None:
    try:
        answer = job(item)
    except Exception as error:  # any kind: it is what the job has to say
        answer = {"error": f"{type(error).__name__}: {error}"[:500]}
    sender.send(answer)
