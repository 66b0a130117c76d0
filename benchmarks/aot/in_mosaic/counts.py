"""What a kernel for Hopper issues, loads and multiplies in a call, counted before it runs."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from benchmarks.aot import sass
from benchmarks.aot.in_triton import limits
from natjax.kernels.backends.mosaic_gpu.config import (
    GROUP_ROWS,
    STAYING,
    KernelConfig,
    blocks_walked,
)
from natjax.kernels.backends.mosaic_gpu.fused.launch import splits_of
from natjax.kernels.backends.mosaic_gpu.run import images_of_a_block
from natjax.kernels.plan.blocks import Blocks
from natjax.kernels.plan.pattern import pattern_of
from natjax.kernels.spec import PRODUCTS, Kernel, blocks_of
from natjax.kernels.tuning.problems import Problem

# Bytes of a number of queries, keys and values, and of one of the table or of a query.
_HALF, _FLOAT = 2, 4
# What is read and written of each token: rows of a head's size, and numbers.
_TOKENS: dict[Kernel, tuple[int, int]] = {
    "forward": (4, 1),
    "dquery": (5, 2),
    "dkeyvalue": (6, 2),
    "dbias": (4, 2),
    "qk": (2, 0),
    "av": (2, 0),
    "av_transposed": (2, 0),
}
_WITH_SLOTS = ("qk", "av", "av_transposed")
_WITH_TABLE = ("forward", "dquery", "dkeyvalue", "dbias", "qk")


@dataclasses.dataclass(frozen=True)
class Parts:
    """The machine code of a kernel, by how often it runs.

    Attributes:
      main: the loop over chunks of a warpgroup that multiplies, if there is one.
      image: what else is done for each image, where there are several.
      copying: the loop of a warpgroup that copies, if there is one.
      rest: all else, which runs once.
    """

    main: sass.Loop
    image: sass.Loop
    copying: sass.Loop
    rest: sass.Loop

    @classmethod
    def of(cls, text: str, config: KernelConfig, images: int) -> Parts:
        """The parts of a kernel's code."""
        empty = sass.Loop(0, 0, 0)
        loops = sass.loops(text)
        place, main = next((x for x in loops if x[1].products), (None, empty))
        image = copying = empty
        if images > 1 and place is not None:
            around = (x for at, x in loops if at.start < place.start and at.stop > place.stop)
            # Slabs of one chunk have no loop of their own.
            image = next(around, main) - main
        if config.copying:
            copying = next((x for _, x in loops if x.copies and not x.products), empty)
        return cls(main, image, copying, sass.whole(text) - main - image - copying)

    def total(self, name: str, config: KernelConfig, images: int, work: dict[str, Any]) -> float:
        """How often all warps of a block of threads do something; code for either kind counts once.

        Args:
          name: of a field of `sass.Loop`.
          config: settings of the kernel.
          images: that the block of threads works on.
          work: what `work_of` gave.
        """
        main, image, copying, rest = (
            getattr(x, name) for x in (self.main, self.image, self.copying, self.rest)
        )
        of_copying = rest + work["copied"] * copying
        # Code without a loop has the first chunk among the rest.
        rounds = work["rounds"] if main else 0
        of_multiplying = rest + images * image + rounds * main
        return 4 * (config.warpgroups * of_multiplying + config.copying * of_copying)


def images_of(kernel: Kernel, problem: Problem, config: KernelConfig) -> int:
    """Images that a block of threads works on, one after the other."""
    if kernel not in STAYING or not problem.rpb:
        return 1
    tiles = problem.heads * blocks_of(kernel, config, problem.neighborhood).num_tiles
    return images_of_a_block(config.images, problem.batch, tiles)


def work_of(kernel: Kernel, problem: Problem, config: KernelConfig) -> dict[str, Any]:
    """Blocks of threads, the rounds of each, bytes, and flops.

    Large windows have no table but for a bias.
    """
    blocks = blocks_of(kernel, config, problem.neighborhood)
    copied, computed = blocks_walked(kernel, blocks)
    of_all = problem.batch * problem.heads
    tiles = of_all * blocks.num_tiles
    programs = _programs(kernel, problem, config, blocks)
    pairs = problem.neighborhood.num_tokens * problem.neighborhood.num_neighbors
    flops = 2 * PRODUCTS[kernel] * of_all * problem.head_dim
    return {
        "programs": programs,
        "rounds": of_all * computed / programs / config.warpgroups,
        "copied": of_all * copied / programs,
        "loaded": _loaded(kernel, problem, config, blocks, tiles, of_all * copied),
        "bytes": _moved(kernel, problem),
        "useful": flops * pairs,
        "executed": flops * computed * GROUP_ROWS * blocks.num_columns,
    }


def counts_of(
    kernel: Kernel, problem: Problem, config: KernelConfig, work: dict[str, Any], text: str
) -> dict[str, Any]:
    """What a warp issues, on the average of all, and what its loop has."""
    images = images_of(kernel, problem, config)
    parts = Parts.of(text, config, images)
    issued, exponentials = (
        parts.total(name, config, images, work) / config.num_warps
        for name in ("instructions", "exponentials")
    )
    found: dict[str, Any] = {"issued": issued, "exponentials_issued": exponentials}
    if not parts.main.instructions:  # there is one chunk, and so no loop over them
        return found
    # Of one warpgroup, which has 64 rows.
    columns = math.prod(config.chunk)
    needed = sass.needed(kernel, GROUP_ROWS, columns, problem.head_dim, 4)
    return found | {
        "loop": parts.main.instructions,
        "loop_spills": parts.main.spills,
        "exponentials": [parts.main.exponentials, needed[0]],
        "products": [parts.main.products, needed[1]],
    }


def _programs(kernel: Kernel, problem: Problem, config: KernelConfig, blocks: Blocks) -> int:
    if kernel != "dbias":
        images = images_of(kernel, problem, config)
        return -(-problem.batch // images) * problem.heads * blocks.num_tiles
    kinds = pattern_of(blocks).num_kinds
    table = (problem.heads, kinds, blocks.num_chunks, blocks.num_rows, blocks.num_columns)
    items = problem.batch * blocks.num_tiles
    return splits_of(table, items) * math.prod(table[:3])


def _loaded(
    kernel: Kernel,
    problem: Problem,
    config: KernelConfig,
    blocks: Blocks,
    tiles: int,
    copied: int,
) -> float:
    """Bytes that blocks of threads load, as those of kernels in Triton's language do.

    But "dquery" finds delta made, and so has no use for the output; and what stays from image to
    image is loaded once.
    """
    row_bytes = _HALF * problem.head_dim
    has_table = problem.rpb and kernel in _WITH_TABLE and kernel != "dbias"
    loaded = limits.loaded(
        kernel,
        tiles=tiles,
        blocks=copied,
        rows=blocks.num_rows,
        columns=blocks.num_columns,
        row_bytes=row_bytes,
        table_bytes=has_table * _FLOAT / images_of(kernel, problem, config),
    )
    return loaded - (kernel == "dquery") * tiles * blocks.num_rows * row_bytes


def _moved(kernel: Kernel, problem: Problem) -> int:
    """Bytes of operands and results, but for the table, which is small."""
    rows, numbers = _TOKENS[kernel]
    of_token = rows * _HALF * problem.head_dim + numbers * _FLOAT
    if kernel in _WITH_SLOTS:
        of_token += _HALF * problem.neighborhood.num_neighbors
    return problem.batch * problem.heads * problem.neighborhood.num_tokens * of_token
