"""What a GPU kernel is compiled with: sizes of its blocks, warps and stages.

Where the settings of a kernel come from, first match wins:

1. `using`, for tests and for tuning;
2. the table of the device's kind under ``kernels/tuned/``, written by ``natjax tune``;
3. `suggest`, a rule of thumb from the shapes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from natjax.kernels.blocks import Blocks
from natjax.kernels.window import Neighborhood

type Kernel = Literal["forward", "dquery", "dkeyvalue", "dbias", "qk", "av", "av_transposed"]

KERNELS: tuple[Kernel, ...] = (
    "forward",
    "dquery",
    "dkeyvalue",
    "dbias",
    "qk",
    "av",
    "av_transposed",
)
# Kernels whose rows are keys; those of the others are queries.
_ROWS_ARE_KEYS = ("dkeyvalue", "av_transposed")
TUNED = Path(__file__).parent / "tuned"


@dataclasses.dataclass(frozen=True, slots=True)
class KernelConfig:
    """Settings of one kernel.

    Attributes:
      tile: rows of a block along each token axis, powers of two, 16 in all or more.
      chunk: columns of a block along each token axis, powers of two, 16 in all or more.
      num_warps: warps of 32 threads that work on a tile: 1, 2, 4, 8 or 16.
      num_stages: chunks in flight, from 1 to 8; more hide latency and take shared memory.

    Raises:
      ValueError: a value breaks its rule.
    """

    tile: tuple[int, ...]
    chunk: tuple[int, ...]
    num_warps: int = 4
    num_stages: int = 2

    def __post_init__(self) -> None:
        """Check the rules; lists, as JSON has them, become tuples."""
        for name in ("tile", "chunk"):
            sides = getattr(self, name)
            rule = f"{name} must have 1 to 3 sides, powers of two whose product is at least 16"
            good = isinstance(sides, tuple | list) and 1 <= len(sides) <= 3
            if not good or not all(map(_is_power_of_two, sides)) or math.prod(sides) < 16:
                raise ValueError(f"{rule}; got {sides!r}")
            object.__setattr__(self, name, tuple(sides))
        if len(self.tile) != len(self.chunk):
            raise ValueError(
                f"tile and chunk must have one side an axis each; got {self.tile} and {self.chunk}"
            )
        if not _is_power_of_two(self.num_warps) or self.num_warps > 16:
            raise ValueError(f"num_warps must be 1, 2, 4, 8 or 16; got {self.num_warps!r}")
        if not isinstance(self.num_stages, int) or not 1 <= self.num_stages <= 8:
            raise ValueError(f"num_stages must be from 1 to 8; got {self.num_stages!r}")

    def blocks(self, kernel: Kernel, hood: Neighborhood) -> Blocks:
        """The blocks of a neighborhood under these settings."""
        return Blocks.of(hood, rows_of(kernel), self.tile, self.chunk)


def rows_of(kernel: Kernel) -> Literal["queries", "keys"]:
    """What the rows of a kernel's blocks are."""
    return "keys" if kernel in _ROWS_ARE_KEYS else "queries"


def _is_power_of_two(x: Any) -> bool:
    return isinstance(x, int) and not isinstance(x, bool) and x > 0 and x & (x - 1) == 0


@dataclasses.dataclass(frozen=True, slots=True)
class Shape:
    """What the best settings of a kernel depend on, besides the device.

    Attributes:
      hood: the neighborhood.
      head_dim: size of queries and keys.
      value_dim: size of values.
      dtype: name of the dtype.
      has_bias: whether there is a relative position bias.
    """

    hood: Neighborhood
    head_dim: int
    value_dim: int
    dtype: str
    has_bias: bool

    @property
    def key(self) -> str:
        """Name in a table of tuned settings."""
        axes = ",".join(
            f"{a.length}k{a.kernel_size}s{a.stride}d{a.dilation}{'c' if a.is_causal else ''}"
            for a in self.hood.axes
        )
        bias = "-bias" if self.has_bias else ""
        return f"{axes}-{self.head_dim}-{self.value_dim}-{self.dtype}{bias}"


_overrides: list[Mapping[Kernel, KernelConfig]] = []


@contextlib.contextmanager
def using(configs: Mapping[Kernel, KernelConfig]) -> Iterator[None]:
    """Within the context, use these settings for the kernels named.

    It acts when an op is traced; a function that `jax.jit` has compiled before keeps its own.
    """
    _overrides.append(configs)
    try:
        yield
    finally:
        _overrides.pop()


def resolve(kernel: Kernel, shape: Shape, device_kind: str) -> tuple[KernelConfig, str]:
    """The settings of a kernel, and where they come from: "given", "tuned" or "suggested"."""
    for configs in reversed(_overrides):
        if kernel in configs:
            return configs[kernel], "given"
    tuned = tuned_table(device_kind).get(shape.key, {}).get(kernel)
    if tuned is not None:
        return tuned, "tuned"
    return suggest(kernel, shape), "suggested"


def table_path(device_kind: str, folder: Path = TUNED) -> Path:
    """File of a device kind's tuned settings."""
    return folder / f"{re.sub(r'[^a-z0-9]+', '-', device_kind.lower()).strip('-')}.json"


@functools.cache
def tuned_table(device_kind: str) -> dict[str, dict[Kernel, KernelConfig]]:
    """Tuned settings of a device kind, by `Shape.key` and kernel; empty where there are none."""
    path = table_path(device_kind)
    return read_table(path) if path.exists() else {}


def read_table(path: Path) -> dict[str, dict[Kernel, KernelConfig]]:
    """Read and check a table of tuned settings.

    Raises:
      ValueError: not such a table; the message names file, entry and rule.
    """
    try:
        document = json.loads(path.read_text())
        return {
            key: {kernel: KernelConfig(**config) for kernel, config in entry.items()}
            for key, entry in document["configs"].items()
        }
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{path} must hold settings as `natjax tune` writes them; got {error!r}"
        ) from error


def write_table(
    path: Path,
    table: Mapping[str, Mapping[Kernel, KernelConfig]],
    environment: Mapping[str, str],
) -> None:
    """Write a table of tuned settings, whole or not at all."""
    configs = {
        key: {kernel: dataclasses.asdict(config) for kernel, config in sorted(entry.items())}
        for key, entry in sorted(table.items())
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    text = json.dumps({"environment": dict(environment), "configs": configs}, indent=1)
    partial.write_text(text + "\n")
    partial.replace(path)
    tuned_table.cache_clear()


# Work besides the entries of blocks, in the same unit; estimates, for want of measurements, whose
# place tables of tuned settings take: loading a row or column; and for each row of a block, the
# reductions of a softmax and rescaling what is accumulated.
_LOAD = 48
_REDUCE = 8
_RESCALE = 1 / 8


def suggest(kernel: Kernel, shape: Shape) -> KernelConfig:
    """Settings by rule of thumb: the least work, counted in logits and loads."""
    return _suggest(kernel, shape)


@functools.lru_cache(256)
def _suggest(kernel: Kernel, shape: Shape) -> KernelConfig:
    return min(candidates(kernel, shape), key=lambda config: cost(kernel, shape, config))


def cost(kernel: Kernel, shape: Shape, config: KernelConfig) -> float:
    """Work of a kernel in entries of blocks, for each token: the logits and what is loaded."""
    blocks = config.blocks(kernel, shape.hood)
    columns = blocks.num_chunks * blocks.num_columns
    overhead = _REDUCE + _RESCALE * _padded(shape)
    entries = blocks.num_rows * (columns + overhead * blocks.num_chunks)
    loads = _LOAD * (blocks.num_rows + columns)
    return blocks.num_tiles * (entries + loads) / blocks.num_tokens


def _padded(shape: Shape) -> int:
    """The wider head size, as kernels see it."""
    return max(16, 1 << (max(shape.head_dim, shape.value_dim) - 1).bit_length())


def candidates(kernel: Kernel, shape: Shape) -> list[KernelConfig]:
    """Settings worth measuring, without those that would not fit registers or shared memory."""
    rows, columns = budget(shape)
    windows = shape.hood.axes
    tiles = _boxes([w.max_group_length for w in windows], rows)
    reach = [min(w.max_group_length, w.kernel_size + 16) for w in windows]
    chunks = _boxes(reach, columns)
    return [
        KernelConfig(tile, chunk, num_warps=warps(math.prod(tile), math.prod(chunk), shape))
        for tile, chunk in itertools.product(tiles, chunks)
    ]


def budget(shape: Shape) -> tuple[int, int]:
    """The most rows and columns of a block: fewer where heads are wide or entries long."""
    width = max(shape.head_dim, shape.value_dim) * (2 if shape.dtype == "float32" else 1)
    if width <= 64:
        return 64, 64
    return (64, 32) if width <= 128 else (32, 32) if width <= 256 else (16, 16)


def warps(rows: int, columns: int, shape: Shape) -> int:
    """Warps that share a block: accumulators and a block of logits fit their registers."""
    entries = rows * (columns + 2 * _padded(shape))
    return 4 if entries >= 32 * 96 else 2 if rows >= 32 else 1


def _boxes(lengths: Sequence[int], most: int) -> list[tuple[int, ...]]:
    """Boxes of 16 to ``most`` entries, powers of two, no side twice as long as it need be.

    The last side alone may be longer, so that there are boxes of 16 for any layout.
    """
    sides = [[1 << i for i in range(int(np.ceil(np.log2(n))) + 1)] for n in lengths]
    sides[-1] = [1 << i for i in range(max(len(sides[-1]), 5))]
    return [box for box in itertools.product(*sides) if 16 <= math.prod(box) <= most]


def device_kind() -> str:
    """Kind of the device that is compiled for: the abstract mesh's, else the default one's."""
    device = target()
    return device.device_kind


def target() -> Any:
    """The device that is compiled for, real or abstract."""
    abstract = jax.sharding.get_abstract_mesh().abstract_device
    if abstract is not None:
        return abstract
    default = jax.config.jax_default_device
    if isinstance(default, str):
        return jax.devices(default)[0]
    return default if default is not None else jax.devices()[0]
