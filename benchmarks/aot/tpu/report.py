"""The results as a document, and as a table that later runs are compared with."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.aot.tpu import figures, others
from benchmarks.aot.tpu.cases import TPUCase, all_cases

type Row = dict[str, Any]

RESULTS = pathlib.Path(__file__).parents[2] / "results"
TABLE = RESULTS / "tpu.json"
DOCUMENT = RESULTS / "tpu.md"
# Which other count of bundles is as good as the same.
TOLERANCE = 0.05

_INTRODUCTION = """\
# The TPU kernels, compiled for TPUs that were not there

    make aot-tpu

Compiled on {date} with jax {jax} and libtpu {libtpu}, on a machine without a TPU: **no kernel
has ever run on a TPU, and no time is known.** A *bundle* is what a core issues in a cycle if
nothing stalls it: the static bundles of the final code, times the turns of its loops, are a lower
bound of cycles in which waiting for memory is not counted.

- *bundles*: for an image and 128 channels, four heads of 32 or one of 128.
- *memory*: cycles in which the published bandwidth moves what a kernel reads and writes, by the
  clock that follows from the published peak. What is larger, bundles or this, bounds the time.
- *fewest*: bundles that the busiest unit alone would need.
- *spills*: stores of spilled registers in the innermost loop.
- *VMEM*: vector memory that blocks of arguments and results, twice each, and scratch memory take.
- *MB*, *GB*: read and written in the memory of the device.

## Small windows

Window 7x7 with a bias, in bfloat16; problems are those of `benchmarks/aot/tpu/cases.py`.

- *inner*: of the innermost loop, for one tile, and so is *fewest*; *spills*: for all side by side.
- *temporaries*: device memory that the op takes besides arguments and results, which have whole
  channels, `[B, H, W, N * D]`. Nothing of their size is copied or transposed around a kernel. On
  v5p and tpu7x XLA reports 21 MB more than elsewhere; no array in the program accounts for them.
- *qk*, *av*: the unfused ops. Their logits and weights have, in memory, heads before tokens, as
  between the ops of one program: nothing is moved there (`benchmarks/aot/tpu/block.py` checks it).
  A program that takes or returns them by rows of tokens has a copy of each at its edge.
- *MB*: for the whole batch.

"""

_LARGE_WINDOWS = """
## Large windows

A step is a tile and a chunk.

- *ideal*: what the products of all steps take if the matrix units never wait, and how many times
  that the bundles are; *of windows*: the same of what queries see, and nothing else.

"""

_OTHERS = """
## Beside splash attention, and beside XLA

The same problems by `jax.experimental.pallas.ops.tpu.splash_attention` with the mask of a
neighborhood, without a bias, over tokens in the order of boxes; of several boxes the one with the
fewest bundles, and without putting tokens in that order and back. And by "xla", as XLA itself
estimates the cycles, with its temporaries for the whole batch.

**Bundles and XLA's cycles are not calibrated against each other**: bundles leave out waiting for
memory, and how XLA estimates is not known. Only large factors between the two mean anything.

"""


def write(rows: Mapping[str, Row], environment: Mapping[str, str]) -> None:
    """Write the table and the document."""
    lines = ",\n".join(f'  "{key}": {json.dumps(row)}' for key, row in rows.items())
    text = f'{{"environment": {json.dumps(dict(environment))},\n "rows": {{\n{lines}\n}}}}\n'
    TABLE.write_text(text)
    DOCUMENT.write_text(document(rows, environment))


def read() -> dict[str, Row]:
    """Rows of the table, by the key of their case."""
    return json.loads(TABLE.read_text())["rows"] if TABLE.exists() else {}


def all_keys() -> list[str]:
    """Names of all rows, in order."""
    return [case.key for case in (*all_cases(), *others.all_cases())]


def document(rows: Mapping[str, Row], environment: Mapping[str, str]) -> str:
    """The document."""
    known = [case for case in all_cases() if case.key in rows]
    small = [_SMALL, *(_small(case, rows[case.key]) for case in known if not case.is_large)]
    large = [_LARGE, *(_large(case, rows[case.key]) for case in known if case.is_large)]
    beside = [_BESIDE, *_compared(rows)]
    text = _INTRODUCTION.format(**environment) + _markdown(small)
    return text + _LARGE_WINDOWS + _markdown(large) + _OTHERS + _markdown(beside)


_SMALL = [
    "problem",
    "pass",
    "chip",
    "tile",
    "side by side",
    "bundles",
    "memory",
    "inner",
    "fewest",
    "spills",
    "VMEM, MB",
    "temporaries, MB",
    "MB",
]
_LARGE = [
    "problem",
    "kernel",
    "chip",
    "tile",
    "chunk",
    "steps",
    "bundles",
    "ideal",
    "of windows",
    "memory",
    "fewest",
    "spills",
    "VMEM, MB",
    "GB",
]
_BESIDE = ["problem", "pass", "chip", "bundles", "splash: bundles", "boxes", "XLA: cycles", "MB"]


def _sides(sides: Sequence[int]) -> str:
    return "x".join(map(str, sides))


def _small(case: TPUCase, row: Row) -> list[str]:
    return [
        case.problem.name,
        case.passed,
        case.chip,
        _sides(row["tile"]),
        str(row["side_by_side"]),
        f"{row['bundles']:,}",
        f"{figures.cycles_of(row['bytes'] / case.maps, case.chip):,}",
        str(row["inner"]),
        f"{row['fewest']} {row['busiest']}",
        str(row["spills"]),
        f"{row['vmem'] / 1e6:.1f}" if "vmem" in row else "-",
        f"{row['temporaries'] / 1e6:.1f}",
        f"{row['bytes'] / 1e6:.0f}",
    ]


def _large(case: TPUCase, row: Row) -> list[str]:
    return [
        case.problem.name,
        case.what,
        case.chip,
        _sides(row["tile"]),
        _sides(row["chunk"]),
        f"{row['steps']:,}",
        _millions(row["bundles"]),
        f"{_millions(row['ideal'])} (x{row['bundles'] / row['ideal']:.2f})",
        _millions(row["ideal_of_windows"]),
        _millions(figures.cycles_of(row["fetched"], case.chip)),
        f"{_millions(row['fewest'])} {row['busiest']}",
        str(row["spills"]),
        f"{row['vmem'] / 1e6:.1f}",
        f"{row['fetched'] / 1e9:.2f}",
    ]


def _millions(number: float) -> str:
    return f"{number / 1e6:.2f}M"


def _compared(rows: Mapping[str, Row]) -> list[list[str]]:
    """Ours beside what others make of the same problems."""
    lines = []
    keys = dict.fromkeys(case.key.rsplit("/", 1)[0] for case in others.all_cases())
    for key in keys:
        name, what, chip = key.split("/")
        passes = (what,) if f"{key}" in rows else ("dquery", "dkeyvalue")
        ours = [rows.get(f"{name}/{x}/{chip}") for x in passes]
        splash, xla = (rows.get(f"{key}/{by}") for by in ("splash", "xla"))
        if splash is None or xla is None or None in ours:
            continue
        bundles = sum(row["bundles"] for row in ours if row)
        lines.append(
            [
                *(name, what, chip),
                f"{bundles:,}",
                f"{splash['bundles']:,} (x{splash['bundles'] / bundles:.1f})",
                f"{_sides(splash['box'])}",
                f"{xla['cycles']:,}",
                f"{xla['temporaries'] / 1e6:,.0f}",
            ]
        )
    return lines


def failures(rows: Mapping[str, Row], known: Mapping[str, Row]) -> dict[str, str]:
    """Why each case that failed did: an error, a copy, or other bundles than are known."""
    reasons = {}
    for key, row in rows.items():
        if "error" in row:
            reasons[key] = row["error"]
        elif row.get("moved"):
            reasons[key] = f"arguments are moved: {', '.join(row['moved'])}"
        elif key in known and "bundles" in row:
            before, now = known[key]["bundles"], row["bundles"]
            if abs(now - before) > TOLERANCE * before:
                reasons[key] = f"{now} bundles, where the table has {before}; `make aot-tpu`"
    return reasons


def _markdown(lines: list[list[str]]) -> str:
    rule = ["---"] * len(lines[0])
    return "".join(f"| {' | '.join(line)} |\n" for line in (lines[0], rule, *lines[1:]))
