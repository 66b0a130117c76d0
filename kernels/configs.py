"""What a GPU kernel is compiled with: sizes of its blocks, warps and stages.

Where the settings of a kernel come from, first match wins:

1. `using`, for tests and for tuning;
2. the table of the device's kind in the folder that the environment variable NATJAX_TUNED names;
3. the table of the device's kind under ``kernels/tuned/``;
4. `suggest`, a rule of thumb from the shapes.

Tables are written by ``natjax tune`` and keyed by exact `Shape`, which leaves batch and heads out:
they number the programs of a kernel and change nothing inside one. There is no nearest match. How
lengths divide into tiles decides between settings, so that a neighbor's are no better founded than
the rule of thumb.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import math
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from natjax.kernels.blocks import Blocks, axis_blocks
from natjax.kernels.window import Neighborhood

type Kernel = Literal["forward", "dquery", "dkeyvalue", "dbias", "qk", "av", "av_transposed"]
type Op = Literal["attention", "qk", "av"]

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
FOLDER = "NATJAX_TUNED"
# The most rows or columns of a block: far more than any device has registers for.
_LARGEST_BLOCK = 4096


@dataclasses.dataclass(frozen=True, slots=True)
class KernelConfig:
    """Settings of one kernel.

    Attributes:
      tile: rows of a block along each token axis, powers of two, 16 to 4096 in all.
      chunk: columns of a block along each token axis, powers of two, 16 to 4096 in all.
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
        """Check the rules."""
        for name in ("tile", "chunk"):
            sides = getattr(self, name)
            good = isinstance(sides, tuple) and 1 <= len(sides) <= 3
            good = good and all(map(_is_power_of_two, sides))
            if not good or not 16 <= math.prod(sides) <= _LARGEST_BLOCK:
                raise ValueError(
                    f"{name} must have 1 to 3 sides, powers of two whose product is from 16 to "
                    f"{_LARGEST_BLOCK}; got {sides!r}"
                )
        if len(self.tile) != len(self.chunk):
            raise ValueError(
                f"tile and chunk must have one side an axis each; got {self.tile} and {self.chunk}"
            )
        if not _is_power_of_two(self.num_warps) or self.num_warps > 16:
            raise ValueError(f"num_warps must be 1, 2, 4, 8 or 16; got {self.num_warps!r}")
        if type(self.num_stages) is not int or not 1 <= self.num_stages <= 8:
            raise ValueError(f"num_stages must be from 1 to 8; got {self.num_stages!r}")

    def blocks(self, kernel: Kernel, hood: Neighborhood) -> Blocks:
        """The blocks of a neighborhood under these settings.

        Raises:
          ValueError: tiles and chunks have not one side for each axis of the neighborhood.
        """
        if len(self.tile) != len(hood.axes):
            raise ValueError(
                f"tile and chunk must have one side for each of {len(hood.axes)} token axes; got "
                f"{self.tile} and {self.chunk}"
            )
        return Blocks.of(hood, rows_of(kernel), self.tile, self.chunk)


def kernels_of(op: Op, has_bias: bool) -> tuple[Kernel, ...]:
    """The kernels that an op and its gradients run; the gradients of either half are the other."""
    if op != "attention":
        return "qk", "av", "av_transposed"
    return "forward", "dquery", "dkeyvalue", *(("dbias",) if has_bias else ())


def padded_head_dim(size: int) -> int:
    """Head size inside a kernel: tensor cores take 16 and powers of two."""
    return max(16, 1 << (size - 1).bit_length())


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


@dataclasses.dataclass(frozen=True, slots=True)
class Resolved:
    """The settings of a kernel for a shape, and where they come from.

    Attributes:
      kernel: which kernel.
      shape: what the settings are for.
      config: the settings.
      source: "given", "NATJAX_TUNED", "tuned" or "suggested", as this module's head has them.
    """

    kernel: Kernel
    shape: Shape
    config: KernelConfig
    source: str


_watchers: list[list[Resolved]] = []


@contextlib.contextmanager
def watching() -> Iterator[list[Resolved]]:
    """Within the context, list the settings that ops resolve as they are traced."""
    seen: list[Resolved] = []
    _watchers.append(seen)
    try:
        yield seen
    finally:
        _watchers.remove(seen)


def resolve(kernel: Kernel, shape: Shape, device_kind: str) -> tuple[KernelConfig, str]:
    """The settings of a kernel, and where they come from (see `Resolved`)."""
    config, source = _resolve(kernel, shape, device_kind)
    for seen in _watchers:
        seen.append(Resolved(kernel, shape, config, source))
    return config, source


def _resolve(kernel: Kernel, shape: Shape, device_kind: str) -> tuple[KernelConfig, str]:
    for configs in reversed(_overrides):
        if kernel in configs:
            return configs[kernel], "given"
    for source, folder in tuned_folders().items():
        tuned = tuned_table(device_kind, folder).get(shape.key, {}).get(kernel)
        if tuned is not None:
            return tuned, source
    return suggest(kernel, shape), "suggested"


def tuned_folders() -> dict[str, Path]:
    """Folders that hold tables of tuned settings, first match first, by the name of the source.

    Raises:
      ValueError: NATJAX_TUNED names something that is not a folder.
    """
    extra = os.environ.get(FOLDER)
    if not extra:
        return {"tuned": TUNED}
    if not os.path.isdir(extra):
        raise ValueError(f"the environment variable {FOLDER} must name a folder; got {extra!r}")
    return {FOLDER: Path(extra), "tuned": TUNED}


def table_path(device_kind: str, folder: Path = TUNED) -> Path:
    """File of a device kind's tuned settings."""
    return folder / f"{re.sub(r'[^a-z0-9]+', '-', device_kind.lower()).strip('-')}.json"


@functools.cache
def tuned_table(device_kind: str, folder: Path = TUNED) -> dict[str, dict[Kernel, KernelConfig]]:
    """Tuned settings of a device kind, by `Shape.key` and kernel; empty where there are none."""
    path = table_path(device_kind, folder)
    return read_table(path) if path.exists() else {}


def read_table(path: Path) -> dict[str, dict[Kernel, KernelConfig]]:
    """Read and check a table of tuned settings.

    Raises:
      ValueError: not such a table; the message names file, entry and rule.
    """
    return _parse(path, _read(path))


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise _malformed(path, "JSON", str(error)) from error


def _parse(path: Path, document: Any) -> dict[str, dict[Kernel, KernelConfig]]:
    entries = _mapping(path, "the table", document).get("configs")
    return {
        key: {
            kernel: _parse_config(path, key, kernel, config)
            for kernel, config in _mapping(path, f"entry {key!r}", entry).items()
        }
        for key, entry in _mapping(path, "'configs'", entries).items()
    }


def _parse_config(path: Path, key: str, kernel: Any, config: Any) -> KernelConfig:
    place = f"entry {key!r}, kernel {kernel!r},"
    if kernel not in KERNELS:
        raise _malformed(path, f"kernels among {KERNELS}", f"entry {key!r} with {kernel!r}")
    fields = [field.name for field in dataclasses.fields(KernelConfig)]
    if sorted(_mapping(path, place, config)) != sorted(fields):
        raise _malformed(path, f"the settings {fields}", f"{place} with {sorted(config)}")
    try:
        # Lists, as JSON has them, become tuples.
        parsed = KernelConfig(
            **{name: tuple(x) if isinstance(x, list) else x for name, x in config.items()}
        )
    except ValueError as error:
        raise ValueError(f"{path}: {place} breaks a rule: {error}") from error
    if len(parsed.tile) != _num_axes(key):
        raise _malformed(path, "one side of tile and chunk for each axis", f"{place} {parsed}")
    return parsed


def _num_axes(key: str) -> int:
    """Token axes of the shape that has this `Shape.key`."""
    return key.partition("-")[0].count(",") + 1


def _mapping(path: Path, place: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _malformed(path, f"an object as {place}", type(value).__name__)
    return value


def _malformed(path: Path, rule: str, got: str) -> ValueError:
    return ValueError(f"{path} must hold {rule}, as `natjax tune` writes it; got {got}")


def update_table(
    path: Path,
    key: str,
    kernel: Kernel,
    config: KernelConfig,
    measured: Mapping[str, float | str | None],
) -> None:
    """Put the settings of one kernel into a table, whole or not at all.

    Args:
      path: the table's file, which need not exist.
      key: `Shape.key`.
      kernel: which kernel.
      config: its settings.
      measured: how they were found; for readers, not used.

    Raises:
      ValueError: the file is no such table; it is left as it is.
      OSError: the folder cannot be written.
    """
    document = _read(path) if path.exists() else {"configs": {}}
    _parse(path, document)
    document["configs"].setdefault(key, {})[kernel] = dataclasses.asdict(config)
    notes = _mapping(path, "'measured'", document.setdefault("measured", {}))
    _mapping(path, "'measured'", notes.setdefault(key, {}))[kernel] = dict(measured)
    text = json.dumps(document, indent=1, sort_keys=True)
    # A line for each kernel.
    text = re.sub(r"\{[^{}]*\}", lambda match: " ".join(match[0].split()), text)
    _write(path, text + "\n")
    tuned_table.cache_clear()


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Beside the file, under a name of its own, so that two processes do not write into one another.
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=path.parent, prefix=".partial-", delete=False
    ) as file:
        partial = Path(file.name)
    try:
        partial.write_text(text, encoding="utf-8")
        partial.chmod(0o644)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


# Work besides the entries of blocks, in the same unit; estimates, for want of measurements, whose
# place tables of tuned settings take: loading a row or column; and for each row of a block, the
# reductions of a softmax and rescaling what is accumulated.
_LOAD = 48
_REDUCE = 8
_RESCALE = 1 / 8
# Entries of a block and its accumulators, of 2 bytes, from which on so many warps share them.
_EIGHT_WARPS = 64 * 256
_FOUR_WARPS = 32 * 96


def suggest(kernel: Kernel, shape: Shape) -> KernelConfig:
    """Settings by rule of thumb: the least work, counted in logits and loads.

    Windows of few keys want small blocks, which compute less that is not seen; windows of many want
    the largest that fit (`budget`), so that what is loaded serves more rows.
    """
    return _suggest(kernel, shape)


@functools.lru_cache(256)
def _suggest(kernel: Kernel, shape: Shape) -> KernelConfig:
    tiles, chunks = _boxes_of(shape, budget(kernel, shape))
    costs = _costs(kernel, shape, tiles, chunks)
    tile, chunk = np.unravel_index(np.argmin(costs), costs.shape)
    return _config(kernel, shape, tiles[tile], chunks[chunk])


def cost(kernel: Kernel, shape: Shape, config: KernelConfig) -> float:
    """Work of a kernel in entries of blocks, for each token: the logits and what is loaded."""
    return float(_costs(kernel, shape, [config.tile], [config.chunk])[0, 0])


def _costs(
    kernel: Kernel,
    shape: Shape,
    tiles: Sequence[tuple[int, ...]],
    chunks: Sequence[tuple[int, ...]],
) -> Float[np.ndarray, "tiles chunks"]:
    """`cost` of each tile with each chunk; thousands, so all at once."""
    # Neither the tiles nor the slab depend on the chunk that slabs are walked by.
    axes = [
        [axis_blocks(window, rows_of(kernel), side, 1) for side in sides]
        for window, sides in zip(shape.hood.axes, zip(*tiles, strict=True), strict=True)
    ]
    num_tiles = np.prod([[x.num_tiles for x in axis] for axis in axes], axis=0)[:, None]
    halos = np.array([[x.halo for x in axis] for axis in axes]).T[:, None]
    num_chunks = np.prod(-(-halos // np.array(chunks)[None]), axis=-1)
    rows, columns = np.prod(tiles, axis=-1)[:, None], np.prod(chunks, axis=-1) * num_chunks
    overhead = _REDUCE + _RESCALE * _width(shape)
    entries = rows * (columns + overhead * num_chunks)
    return num_tiles * (entries + _LOAD * (rows + columns)) / shape.hood.num_tokens


def _width(shape: Shape) -> int:
    """The wider head size, as kernels see it."""
    return padded_head_dim(max(shape.head_dim, shape.value_dim))


def candidates(
    kernel: Kernel, shape: Shape, most: tuple[int, int] | None = None
) -> list[KernelConfig]:
    """Blocks to choose from, of up to ``most`` rows and columns (by default those of `budget`)."""
    tiles, chunks = _boxes_of(shape, most or budget(kernel, shape))
    return [_config(kernel, shape, tile, chunk) for tile, chunk in itertools.product(tiles, chunks)]


def _boxes_of(
    shape: Shape, most: tuple[int, int]
) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Tiles and chunks of up to ``most`` rows and columns."""
    windows = shape.hood.axes
    reach = [min(w.max_group_length, w.kernel_size + 16) for w in windows]
    return _boxes([w.max_group_length for w in windows], most[0]), _boxes(reach, most[1])


def _config(
    kernel: Kernel, shape: Shape, tile: tuple[int, ...], chunk: tuple[int, ...]
) -> KernelConfig:
    return KernelConfig(
        tile,
        chunk,
        num_warps=warps(kernel, math.prod(tile), math.prod(chunk), shape),
        num_stages=stages(kernel, shape),
    )


def budget(kernel: Kernel, shape: Shape) -> tuple[int, int]:
    """The most rows and columns of a block that registers and shared memory have room for.

    Fewer where heads are wide or entries long, and where a kernel keeps more than one row or block
    of results. What each choice takes of an A100, H100 and B200, where none spills, is in
    benchmarks/results/aot.md.
    """
    width = _width(shape) * (2 if shape.dtype == "float32" else 1)
    if width > 256:
        return 16, 16
    if width > 128:
        return (16, 32) if kernel == "dquery" and shape.dtype == "float32" else (32, 32)
    if kernel in ("forward", "dquery") and shape.dtype != "float32":
        return (128, 64) if kernel == "forward" or width <= 64 else (64, 64)
    return (64, 64) if width <= 64 else (64, 32)


def warps(kernel: Kernel, rows: int, columns: int, shape: Shape) -> int:
    """Warps that share a block: accumulators and a block of logits fit their registers."""
    accumulators = 2 if kernel == "dkeyvalue" else 1
    entries = rows * (columns + 2 * accumulators * _width(shape))
    if entries * (2 if shape.dtype == "float32" else 1) >= _EIGHT_WARPS:
        return 8
    return 4 if entries >= _FOUR_WARPS else 2 if rows >= 32 else 1


def stages(kernel: Kernel, shape: Shape) -> int:
    """Chunks in flight: two, or three where narrow heads leave shared memory for them.

    That is for gradients of keys, whose chunks bring most along. With two, ptxas spills 8 bytes on
    a B200, with no more than 80 registers in use.
    """
    narrow = _width(shape) <= 32 and shape.dtype != "float32"
    return 3 if kernel == "dkeyvalue" and narrow else 2


def _boxes(lengths: Sequence[int], most: int) -> list[tuple[int, ...]]:
    """Boxes of 16 to ``most`` entries, powers of two, no side twice as long as it need be.

    The last side alone may be longer, so that there are boxes of 16 for any layout.
    """
    sides = [[1 << i for i in range(int(np.ceil(np.log2(n))) + 1)] for n in lengths]
    sides[-1] = [1 << i for i in range(max(len(sides[-1]), 5))]
    return [box for box in itertools.product(*sides) if 16 <= math.prod(box) <= most]
