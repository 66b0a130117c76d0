"""PyTorch's FlexAttention with the same mask and bias; a program of its own, for its own memory.

Run by `benchmarks.gpu.torch_worker`. It reads a variant and a list of problems from its standard
input, compiles them, says "ready", waits for a line, measures, and writes one row a line. The
variant "flex" is PyTorch's own choice of kernels, those in Triton's language; "flex_fa4" is its
backend of FlashAttention-4, for Hopper and Blackwell, which needs the package flash-attn-4 besides.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.gpu.plan import MODES, Mode, Variant
from natjax.kernels.tuning.problems import Problem

_ROUND_SECONDS = 0.02
_ROUNDS = 7
_LONGEST = 100
# What is asked of FlexAttention besides a mask and a bias. Where it is given a backend and cannot
# use it, it raises an error.
_KERNELS: dict[Variant, dict[str, Any] | None] = {"flex": None, "flex_fa4": {"BACKEND": "FLASH"}}
# Queries and keys of a block of the mask, for which there is one decision: FlashAttention-4 wants
# its own tiles, by the device's major compute capability, where PyTorch's default is 128 x 128.
_MASK_BLOCKS = {9: (128, 128), 10: (256, 128)}


def main() -> None:
    """Compile, wait, measure."""
    request = json.loads(sys.stdin.readline())
    torch: Any = importlib.import_module("torch")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    _allow_recompilation()
    variant = request["variant"]
    chosen = [_problem(fields) for fields in request["problems"]]
    calls = {
        (problem.name, mode): _compiled(torch, variant, problem, mode, request["dtype"], device)
        for problem in chosen
        for mode in MODES
    }
    print("ready", flush=True)
    sys.stdin.readline()
    for (name, mode), call in calls.items():
        row = {"problem": name, "mode": mode, "variant": variant}
        if isinstance(call, str):
            print(json.dumps(row | {"error": call}), flush=True)
        else:
            print(json.dumps(row | _measure(torch, call, device)), flush=True)


def _allow_recompilation() -> None:
    """Each problem is compiled for itself; PyTorch would go on uncompiled after eight of them."""
    settings = importlib.import_module("torch._dynamo").config
    for name in ("recompile_limit", "cache_size_limit"):
        if hasattr(settings, name):
            setattr(settings, name, 1024)


def fields_of(problem: Problem) -> dict[str, Any]:
    """A problem as JSON takes it."""
    return dataclasses.asdict(problem)


def _problem(fields: dict[str, Any]) -> Problem:
    return Problem(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})


def _compiled(
    torch: Any, variant: Variant, problem: Problem, mode: Mode, dtype: str, device: str
) -> Callable[[], Any] | str:
    """A call that has run once, or why there is none."""
    try:
        call = _call(torch, variant, problem, mode, getattr(torch, dtype), device)
        call()
    except Exception as error:  # whatever PyTorch cannot do is a result
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]
    return call


def _call(
    torch: Any, variant: Variant, problem: Problem, mode: Mode, dtype: Any, device: str
) -> Callable[[], Any]:
    flex: Any = importlib.import_module("torch.nn.attention.flex_attention")
    tokens = problem.neighborhood.num_tokens
    shape = (problem.batch, problem.heads, tokens, problem.head_dim)
    with_gradients = mode != "forward"
    generator = torch.Generator(device).manual_seed(0)

    def draw(*shape: int) -> Any:
        x = torch.randn(shape, generator=generator, dtype=dtype, device=device)
        return x.requires_grad_(with_gradients)

    query, key, value = draw(*shape), draw(*shape), draw(*shape)
    rpb = draw(problem.heads, *problem.neighborhood.bias_shape) if problem.rpb else None
    is_neighbor, add_bias = modifications(torch, problem, rpb, device)
    attention, create_mask = flex.flex_attention, flex.create_block_mask
    if device == "cuda":
        # Compiled, neither the mask nor the logits are ever there as a whole.
        attention, create_mask = (
            torch.compile(function, dynamic=False) for function in (attention, create_mask)
        )
    options = _KERNELS[variant]
    sizes = {} if options is None else {"BLOCK_SIZE": mask_block(torch, device)}
    mask = create_mask(is_neighbor, None, None, tokens, tokens, device=device, **sizes)
    leaves = [x for x in (query, key, value, rpb) if x is not None]

    def call() -> Any:
        out = attention(
            query, key, value, score_mod=add_bias, block_mask=mask, kernel_options=options
        )
        return torch.autograd.grad(out, leaves, query.detach()) if with_gradients else out

    return call


def mask_block(torch: Any, device: str) -> tuple[int, int]:
    """Queries and keys of a block of the mask that FlashAttention-4 takes on this device.

    Raises:
      NotImplementedError: it does not run on the device.
    """
    major = torch.cuda.get_device_capability()[0] if device == "cuda" else 0
    if major not in _MASK_BLOCKS:
        raise NotImplementedError(
            "FlexAttention's backend of FlashAttention-4 is for GPUs of compute capability "
            f"{' and '.join(f'{x}.x' for x in _MASK_BLOCKS)}; got {device} {major}.x"
        )
    return _MASK_BLOCKS[major]


def modifications(torch: Any, problem: Problem, rpb: Any, device: str) -> tuple[Any, Any]:
    """The mask and the bias as functions of token indices, from `natjax.kernels.neighborhood`."""
    axes = problem.neighborhood.axes
    tables = [
        [torch.as_tensor(np.asarray(x), dtype=torch.int32, device=device) for x in arrays]
        for arrays in ((a.start(np.arange(a.length)), a.end(np.arange(a.length))) for a in axes)
    ]

    def along_axes(token: Any) -> list[Any]:
        indices = []
        for axis in reversed(axes):
            indices.append(token % axis.length)
            token = token // axis.length
        return indices[::-1]

    def is_neighbor(b: Any, h: Any, query: Any, key: Any) -> Any:
        seen = query >= 0
        for axis, (start, end), q, k in zip(
            axes, tables, along_axes(query), along_axes(key), strict=True
        ):
            position = k // axis.dilation
            seen = seen & (k % axis.dilation == q % axis.dilation)
            seen = seen & (start[q] <= position) & (position < end[q])
        return seen

    def add_bias(score: Any, b: Any, head: Any, query: Any, key: Any) -> Any:
        indices = [
            # Beyond the window there is no bias; nor does it matter, for want of a neighbor.
            torch.clamp(axis.bias_index(q, k), 0, 2 * axis.kernel_size - 2)
            for axis, q, k in zip(axes, along_axes(query), along_axes(key), strict=True)
        ]
        return score + rpb[head, *indices]

    return is_neighbor, None if rpb is None else add_bias


def _measure(torch: Any, call: Callable[[], Any], device: str) -> dict[str, float]:
    """As in `benchmarks.gpu.timing`: many calls between two waits, the median of the rounds."""
    wait = torch.cuda.synchronize if device == "cuda" else (lambda: None)

    def seconds(repeats: int) -> float:
        wait()
        begin = time.perf_counter()
        for _ in range(repeats):
            call()
        wait()
        return time.perf_counter() - begin

    memory = 0
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    once = seconds(1)
    if device == "cuda":
        memory = torch.cuda.max_memory_allocated() - before
    repeats = max(1, min(_LONGEST, round(_ROUND_SECONDS / once)))
    rounds = _ROUNDS if once < 0.1 else 3
    times = [seconds(repeats) / repeats * 1e3 for _ in range(rounds)]
    low, _, high = statistics.quantiles(times, n=4)
    return {
        "ms": statistics.median(times),
        "spread_ms": (high - low) / 2,
        "rounds": rounds,
        "calls": repeats,
        "memory_bytes": memory,
    }


if __name__ == "__main__":
    main()
