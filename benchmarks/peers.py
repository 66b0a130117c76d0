r"""NAT-Tiny's attention on a CPU beside PyTorch's, forward and backward, in turns.

    python benchmarks/peers.py --torch-python OTHER/python --peers swin natten

NATTEN 0.17.5 has kernels for CPUs and computes the same function, so results are compared. A plain
`pip install` compiles them without optimisation; this does better (CMake, a C++ compiler and a
build of PyTorch for CPUs are needed):

    CXXFLAGS="-O3 -march=native -fopenmp -DCPU_CAPABILITY=AVX2 -DCPU_CAPABILITY_AVX2" \
      OTHER/python -m pip install --no-build-isolation --no-deps natten==0.17.5

Swin attends within disjoint windows of as many keys, so it moves no key twice and masks nothing:
what neighborhoods cost more is what the ratio says. Both get query, key and value of the same maps,
cut into windows as Swin's own code has it. On the smallest map both are the same function, and
their results are compared.

PyTorch runs in a process of its own, since it need not be installed beside JAX; both use all cores.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

WINDOW = 7
HEAD_DIM = 32
# Side of the map and heads of each stage of NAT-Tiny.
STAGES = {f"stage{i + 1}": (56 >> i, 2 << i) for i in range(4)}


def make_arrays(stage: str, batch: int) -> list[Any]:
    """Query, key, value and bias of a stage, in NumPy."""
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

    def attention(query: Any, key: Any, value: Any, bias: Any) -> Any:
        query, key, value = map(windows, (query, key, value))
        logits = (query * HEAD_DIM**-0.5) @ key.transpose(-2, -1) + bias[:, *index][None]
        return joined(logits.softmax(dim=-1) @ value)

    return torch_step(attention, stage, batch)


def natten_step(stage: str, batch: int) -> Callable[[], float]:
    """The same by NATTEN 0.17.5."""
    torch = importlib.import_module("torch")
    # NATTEN asks for these when it is imported, also where there is no CUDA.
    torch.cuda._device_t = object
    torch.cuda.get_device_capability = lambda *_: (0, 0)
    functional = importlib.import_module("natten.functional")

    def attention(query: Any, key: Any, value: Any, bias: Any) -> Any:
        query, key, value = (x.movedim(3, 1).contiguous() for x in (query, key, value))
        logits = functional.na2d_qk(query * HEAD_DIM**-0.5, key, WINDOW, rpb=bias)
        return functional.na2d_av(logits.softmax(dim=-1), value, WINDOW).movedim(1, 3)

    return torch_step(attention, stage, batch)


PEERS = {"swin": swin_step, "natten": natten_step}


def torch_step(attention: Callable[..., Any], stage: str, batch: int) -> Callable[[], float]:
    """One value and gradients of all arguments by PyTorch; returns the value."""
    torch = importlib.import_module("torch")
    arrays = [torch.from_numpy(x).requires_grad_() for x in make_arrays(stage, batch)]

    def call() -> float:
        for x in arrays:
            x.grad = None
        loss = (attention(*arrays) * arrays[0]).sum()
        loss.backward()
        return float(loss.detach())

    return call


def seconds_of(step: Callable[[], float]) -> tuple[float, float]:
    """Wall time of one run, and its value."""
    start = time.perf_counter()
    value = step()
    return time.perf_counter() - start, value


def work() -> None:
    """The other process: run the peer and stage that a line names; answer seconds and value."""
    steps: dict[tuple[str, str, int], Callable[[], float]] = {}
    for line in sys.stdin:
        peer, stage, batch = json.loads(line)
        if (peer, stage, batch) not in steps:
            steps[peer, stage, batch] = PEERS[peer](stage, batch)
            steps[peer, stage, batch]()
        print(json.dumps(seconds_of(steps[peer, stage, batch])), flush=True)


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


def compare(torch_python: str, peers: list[str], batch: int, rounds: int) -> None:
    """Print a table of all stages."""
    process = subprocess.Popen(
        [torch_python, __file__, "--worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    heads = ["stage", "natjax ms"]
    for peer in peers:
        heads += [f"{peer} ms", "of natjax's (quartiles)"]
    print("| " + " | ".join(heads) + " |\n|" + " --- |" * len(heads))
    for stage in STAGES:
        step = natjax_step(stage, batch)
        step()
        turns = [
            (seconds_of(step), *(ask(process, peer, stage, batch) for peer in peers))
            for _ in range(rounds)
        ]
        times, values = np.moveaxis(np.asarray(turns), -1, 0)
        for peer, value in zip(peers, values[0, 1:], strict=True):
            check_value(peer, stage, values[0, 0], value)
        middle = 1e3 * np.median(times, axis=0)
        cells = [stage, f"{middle[0]:.1f}"]
        for i in range(1, len(middle)):
            low, ratio, high = np.quantile(times[:, i] / times[:, 0], (0.25, 0.5, 0.75))
            cells += [f"{middle[i]:.1f}", f"{ratio:.2f} ({low:.2f} to {high:.2f})"]
        print("| " + " | ".join(cells) + " |", flush=True)


def check_value(peer: str, stage: str, ours: float, theirs: float) -> None:
    """End the program where the same function has another value."""
    same_function = peer == "natten" or STAGES[stage][0] == WINDOW
    if same_function and not math.isclose(ours, theirs, rel_tol=1e-3):
        sys.exit(f"natjax and {peer} differ at {stage}: {ours} and {theirs}")


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--torch-python", help="a Python that has PyTorch")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=["swin"])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work()
    elif args.torch_python is None:
        parser.error("--torch-python: needed, as PyTorch runs in a process of its own")
    else:
        compare(args.torch_python, args.peers, args.batch, args.rounds)


if __name__ == "__main__":
    main()
