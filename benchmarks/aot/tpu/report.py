"""The results as a document, and as a table that later runs are compared with."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from benchmarks.aot.tpu.cases import all_cases

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

Window 7x7 with a bias, in bfloat16; problems are those of `benchmarks/aot/tpu/cases.py`.

- *bundles*: for an image and 128 channels (four heads of 32).
- *inner*: of the innermost loop, for one tile; *fewest*: what its busiest unit alone would need.
- *spills*: stores of spilled registers in that loop, for all tiles side by side.
- *temporaries*: device memory that the op takes besides arguments and results, which have whole
  channels, `[B, H, W, N * D]`. Nothing of their size is copied or transposed around a kernel. On
  v5p and tpu7x XLA reports 21 MB more than elsewhere; no array in the program accounts for them.
- *qk*, *av*: the unfused ops. XLA permutes logits and weights around their kernels, which have them
  laid out in another way: that is in *temporaries*, and not in *bundles*.
- *MB*: arguments read and results written, for the whole batch.

"""


def write(rows: Mapping[str, Row], environment: Mapping[str, str]) -> None:
    """Write the table and the document."""
    lines = ",\n".join(f'  "{key}": {json.dumps(row)}' for key, row in rows.items())
    text = f'{{"environment": {json.dumps(dict(environment))},\n "rows": {{\n{lines}\n}}}}\n'
    TABLE.write_text(text)
    DOCUMENT.write_text(document(rows, environment))


def read() -> dict[str, Row]:
    """Rows of the table, by `TPUCase.key`."""
    return json.loads(TABLE.read_text())["rows"] if TABLE.exists() else {}


def document(rows: Mapping[str, Row], environment: Mapping[str, str]) -> str:
    """The document."""
    lines = [_HEADER]
    for case in all_cases():
        if (row := rows.get(case.key)) is not None:
            name = [case.problem.name, case.passed, case.chip]
            lines.append(name + _figures(row))
    return _INTRODUCTION.format(**environment) + _markdown(lines)


_HEADER = [
    "problem",
    "pass",
    "chip",
    "tile",
    "side by side",
    "bundles",
    "inner",
    "fewest",
    "spills",
    "temporaries, MB",
    "MB",
]


def _figures(row: Row) -> list[str]:
    return [
        "x".join(map(str, row["tile"])),
        str(row["side_by_side"]),
        f"{row['bundles']:,}",
        str(row["inner"]),
        f"{row['fewest']} {row['busiest']}",
        str(row["spills"]),
        f"{row['temporaries'] / 1e6:.1f}",
        f"{row['bytes'] / 1e6:.0f}",
    ]


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
