"""NAT-Tiny's attention on a CPU beside Swin's by PyTorch, forward and backward, in turns.

    python benchmarks/peers.py --torch-python OTHER/python

Swin attends within disjoint windows of as many keys, so it moves no key twice and masks nothing:
what neighborhoods cost more is what the ratio says. Both get query, key and value of the same maps,
cut into windows as Swin's own code has it. PyTorch runs in a process of its own, since it need not
be installed beside JAX; both use all cores. On the smallest map both are the same function, and
their results are compared.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

WINDOW = 7
HEAD_DIM = 32
# Side of the map and heads of each stage of NAT-Tiny.
STAGES = {f"stage{i + 1}": (56 >> i, 2 << i) for i in range(4)}


def make_arrays(stage: str, batch: int) -> list[Any]:
    """Query, key, value and bias of a stage, in NumPy."""
    import numpy as np

    side, heads = STAGES[stage]
    rng = np.random.default_rng(0)
    tokens = (batch, side, side, heads, HEAD_DIM)
    shapes = (tokens, tokens, tokens, (heads, 2 * WINDOW - 1, 2 * WINDOW - 1))
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def natjax_step(stage: str, batch: int) -> Callable[[], float]:
    """One value and gradients of all arguments by natjax; returns the value."""
    import jax
    import jax.numpy as jnp

    import natjax

    def loss(arrays: list[jax.Array]) -> jax.Array:
        out = natjax.na2d(*arrays[:3], WINDOW, rpb=arrays[3])
        return jnp.sum(out * arrays[0])

    step = jax.jit(jax.value_and_grad(loss))
    arrays = [jnp.asarray(x) for x in make_arrays(stage, batch)]
    return lambda: float(jax.block_until_ready(step(arrays))[0])


def swin_step(stage: str, batch: int) -> Callable[[], float]:
    """The same by PyTorch, within windows."""
    torch = importlib.import_module("torch")  # of another Python than the type checker's

    arrays = [torch.from_numpy(x).requires_grad_() for x in make_arrays(stage, batch)]
    side, heads = STAGES[stage]
    count, grid = side // WINDOW, torch.arange(WINDOW)
    rows, columns = (x.flatten() for x in torch.meshgrid(grid, grid, indexing="ij"))
    index = [x[None, :] - x[:, None] + WINDOW - 1 for x in (rows, columns)]

    def windows(x: Any) -> Any:
        x = x.reshape(batch, count, WINDOW, count, WINDOW, heads, HEAD_DIM)
        return x.permute(0, 1, 3, 5, 2, 4, 6).reshape(-1, heads, WINDOW**2, HEAD_DIM)

    def joined(x: Any) -> Any:
        x = x.reshape(batch, count, count, heads, WINDOW, WINDOW, HEAD_DIM)
        return x.permute(0, 1, 4, 2, 5, 3, 6).reshape(batch, side, side, heads, HEAD_DIM)

    def call() -> float:
        for x in arrays:
            x.grad = None
        query, key, value = map(windows, arrays[:3])
        logits = (query * HEAD_DIM**-0.5) @ key.transpose(-2, -1) + arrays[3][:, *index][None]
        loss = (joined(logits.softmax(dim=-1) @ value) * arrays[0]).sum()
        loss.backward()
        return float(loss.detach())

    return call


def seconds_of(step: Callable[[], float]) -> tuple[float, float]:
    """Wall time of one run, and its value."""
    start = time.perf_counter()
    value = step()
    return time.perf_counter() - start, value


def work() -> None:
    """The other process: run the stage that a line names, and answer with seconds and value."""
    steps: dict[tuple[str, int], Callable[[], float]] = {}
    for line in sys.stdin:
        stage, batch = json.loads(line)
        if (stage, batch) not in steps:
            steps[stage, batch] = swin_step(stage, batch)
            steps[stage, batch]()
        print(json.dumps(seconds_of(steps[stage, batch])), flush=True)


def ask(process: subprocess.Popen[str], *request: object) -> list[float]:
    """Send a line to the other process and read its answer."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(request) + "\n")
    process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        sys.exit("PyTorch's process ended; see above")
    return json.loads(line)


def compare(torch_python: str, batch: int, rounds: int) -> None:
    """Print a table of all stages."""
    process = subprocess.Popen(
        [torch_python, __file__, "--worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    print("| stage | natjax ms | Swin ms | times as long (quartiles) |\n| --- | --- | --- | --- |")
    for stage, (side, _) in STAGES.items():
        step = natjax_step(stage, batch)
        step()
        turns = [(*seconds_of(step), *ask(process, stage, batch)) for _ in range(rounds)]
        ours, value, theirs, other = zip(*turns, strict=True)
        if side == WINDOW and not math.isclose(value[0], other[0], rel_tol=1e-3):
            sys.exit(f"natjax and Swin differ on one window: {value[0]} and {other[0]}")
        ratio = [a / b for a, b in zip(ours, theirs, strict=True)]
        low, middle, high = statistics.quantiles(ratio, n=4)
        times = (f"{1e3 * statistics.median(x):.1f}" for x in (ours, theirs))
        cells = [stage, *times, f"{middle:.2f} ({low:.2f} to {high:.2f})"]
        print("| " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--torch-python", help="a Python that has PyTorch")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return work()
    if not options.torch_python:
        parser.error("--torch-python must be a Python that has PyTorch; got none")
    return compare(options.torch_python, options.batch, options.rounds)


if __name__ == "__main__":
    main()
