"""The same problems by others: JAX's splash attention, and XLA's own compile of "xla".

Splash attention goes over pairs of blocks of queries and keys, and leaves out those that its mask
hides; here the mask is a neighborhood's. Tokens are put in the order of boxes, since rows of a map
would make it meet many more. It has no bias.
"""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
import tempfile
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.aot.tpu import bundles, compiler, estimate
from benchmarks.aot.tpu.cases import FIRST, LARGE, PASSES, VIDEO, Pass, TPUCase
from natjax.kernels.tuning.problems import Problem

type Other = Literal["splash", "xla"]

# Which problems are compared, on which chips.
_COMPARED: list[tuple[Problem, tuple[str, ...]]] = [
    (FIRST, ("v5e", "v6e")),
    (LARGE, ("v5e",)),
    (VIDEO, ("v5e",)),
]
# Boxes of tokens that are blocks of splash attention: the best of them counts.
_BOXES = {
    FIRST.name: ((8, 16), (16, 16), (16, 32)),
    LARGE.name: ((16, 16), (16, 32), (32, 32)),
    VIDEO.name: ((4, 8, 8), (4, 8, 16), (8, 8, 8), (4, 16, 16)),
}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class OtherCase:
    """One pass of one problem by another implementation; the backward pass has all gradients."""

    problem: Problem
    what: Pass
    chip: str
    by: Other

    @property
    def key(self) -> str:
        """Name in the table of results."""
        return f"{self.problem.name}/{self.what}/{self.chip}/{self.by}"


def all_cases() -> list[OtherCase]:
    """What the table compares."""
    return [
        OtherCase(problem=problem, what=what, chip=chip, by=by)
        for problem, chips in _COMPARED
        for what in PASSES
        for chip in chips
        for by in ("splash", "xla")
    ]


def compile_case(case: OtherCase) -> dict[str, Any]:
    """Compile a case: a row of the table."""
    return _splash(case) if case.by == "splash" else _xla(case)


# XLA.


def _xla(case: OtherCase) -> dict[str, Any]:
    """XLA's estimate of cycles, for an image and 128 channels; and what it takes besides."""
    ours = TPUCase(problem=case.problem, what=case.what, chip=case.chip, implementation="xla")
    program = compiler.compile_program(ours)
    return {
        "cycles": round(estimate.cycles(program.as_text()) / ours.maps),
        "temporaries": program.memory_analysis().temp_size_in_bytes,
    }


# Splash attention.


def _splash(case: OtherCase) -> dict[str, Any]:
    """Bundles of the best blocks, for an image and 128 channels."""
    with tempfile.TemporaryDirectory() as name:
        # Read when libtpu is loaded.
        os.environ["LIBTPU_INIT_ARGS"] = f"--xla_jf_dump_to={name}"
        folder = pathlib.Path(name)
        rows = (_with_box(case, box, folder) for box in _BOXES[case.problem.name])
        return min(rows, key=lambda row: row["bundles"])


def _with_box(case: OtherCase, box: tuple[int, ...], folder: pathlib.Path) -> dict[str, Any]:
    """The bundles of one pair of blocks, which a small map has too, times the pairs of blocks."""
    for path in folder.iterdir():
        path.unlink()
    p = case.problem
    small = [2 * side for side in box]
    kernel_size = [min(k, side) for k, side in zip(p.kernel_size, small, strict=True)]
    mask = _mask(tuple(small), tuple(kernel_size), box)
    with compiler.target(case.chip) as sharding:
        _compile_splash(case, mask, math.prod(box), sharding)
    found = bundles.read(folder, f"splash*{'fwd' if case.what == 'forward' else 'dkv'}")
    pairs = math.prod(
        _pairs(n, k, side) for n, k, side in zip(p.shape, p.kernel_size, box, strict=True)
    )
    heads = 128 // p.head_dim
    return {
        "box": list(box),
        "pairs": pairs,
        "bundles": round(pairs * heads * sum(found.count[1:])),
    }


def _pairs(length: int, kernel_size: int, side: int) -> int:
    """Pairs of boxes along an axis of which queries of one see keys of the other."""
    starts = np.clip(np.arange(length) - kernel_size // 2, 0, length - kernel_size)
    cuts = np.arange(0, length, side)
    first = np.minimum.reduceat(starts, cuts) // side
    last = (np.maximum.reduceat(starts, cuts) + kernel_size - 1) // side
    return int((last - first + 1).sum())


def _mask(shape: tuple[int, ...], kernel_size: tuple[int, ...], box: tuple[int, ...]) -> Any:
    """The neighborhood of a map whose tokens are in the order of boxes."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    def split(x: Any, size: int) -> tuple[Any, Any]:
        """Quotient and remainder, by shifts where that will do: kernels compute them."""
        if size & (size - 1):
            return x // size, x % size
        return x >> (size.bit_length() - 1), x & (size - 1)

    def places(token: Any) -> list[Any]:
        boxes, within = split(token, math.prod(box))
        found = []
        for side, n in reversed(list(zip(box, shape, strict=True))):
            boxes, outer = split(boxes, n // side)
            within, inner = split(within, side)
            found.insert(0, outer * side + inner)
        return found

    def sees(query: Any, key: Any) -> Any:
        xp = np if isinstance(query, np.ndarray) else jnp
        seen = True
        for q, k, n, size in zip(places(query), places(key), shape, kernel_size, strict=True):
            start = xp.clip(q - size // 2, 0, n - size)
            seen = seen & (start <= k) & (k < start + size)
        return seen

    class Mask(masks._ComputableMask):  # there is no public base of masks
        def __eq__(self, other: object) -> bool:
            return self is other

        def __hash__(self) -> int:
            return id(self)

    tokens = math.prod(shape)
    return masks.MultiHeadMask([Mask((tokens, tokens), sees)])


def _compile_splash(case: OtherCase, mask: Any, block: int, sharding: Any) -> Any:
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash

    sizes = splash.BlockSizes(
        **{
            f"block_{name}": block
            for name in ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute")
        },
        use_fused_bwd_kernel=True,
    )
    attend = splash.make_splash_mha_single_device(mask, block_sizes=sizes)
    shape = (1, mask.shape[1], case.problem.head_dim)
    x = jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=sharding)

    def gradients(q: Any, k: Any, v: Any, do: Any) -> Any:
        return jax.vjp(attend, q, k, v)[1](do)

    run, count = (attend, 3) if case.what == "forward" else (gradients, 4)
    return jax.jit(run).lower(*[x] * count).compile()
