"""The results as a document, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from benchmarks.aot.report import RESULTS
from benchmarks.aot.step.cases import MACHINES, StepCase, all_cases
from benchmarks.aot.step.tasks import TASKS

type Row = dict[str, Any]

TABLE = RESULTS / "aot_step.json"
DOCUMENT = RESULTS / "aot_step.md"

_INTRODUCTION = """\
# The training step, compiled for machines that were not there

    make aot-step

Compiled with jax {jax} on the day of each row, on a machine without GPU or TPU: **nothing here was
run, and nothing says how fast it is.** A step is that of a preset (stochastic depth, AdamW, their
averages if any, and what it changes at random on the devices: mixup and CutMix, random erasing) in
bfloat16, on a mesh of all devices as `natjax train` makes it. *Kernels* are ours that the program
holds. Steps that are set to "xla" have the plain implementation instead, whose temporaries are
larger. The presets are

{presets}

*Batch* is the images a step, over all devices. *Arguments* are state and batch, *peak* the most
that the program needs at once, as its compiler counts, both in GB (1e9 bytes) a device. An H100 has
84.9 GB, of which JAX takes 75 % unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise; a v5e has
16.9 GB for programs. *Collectives* are numbers and megabytes of results a device; those in the body
of a loop are counted once and in brackets. *CPU s* is the processor time of tracing and compiling.
TFLOP are a device's, as XLA counts them (it counts the body of a loop once, and nothing for GPUs).

A compiler that refuses a step for its size tells the size of its temporaries only, which then is
the peak. Steps with remat are compiled for GPUs without XLA's latency-hiding scheduler, as in
training.

All-reduces are gradients and metrics; those in loops are the same, once for each part of an
accumulated batch. The one collective-permute of classification's steps is mixup's: each device gets
the images (uint8) that its own are mixed with, from one other device. Those *for norms* are new in
segmentation: sums over the batch, and their gradients, of the heads' 13 batch norms, recognised by
the function that the compiler says they come from. Nothing else is new, and no activation crosses
devices; `make aot-step-check` fails if one does.

Rows with "xla" on TPUs are from before "xla" chose its tiles by platform.

Rows of before 2026-11-26 are of an older step, with the residual stream, and the gradients that
devices exchange, in bfloat16. Both are in float32 now. That took the first row from 12.20 to
13.83 GB (the stream alone to 12.82), and what its devices sum up from 74.3 to 128.9 MB.
"""

_HEADER = [
    "model",
    "machine",
    "batch",
    "settings",
    "arguments",
    "peak",
    "fits",
    "collectives",
    "kernels",
    "TFLOP",
    "CPU s",
    "day",
]


def read() -> dict[str, Row]:
    """The committed rows, by `StepCase.key`."""
    return json.loads(TABLE.read_text())["rows"] if TABLE.exists() else {}


def add(key: str, row: Row, environment: Mapping[str, str]) -> None:
    """Put a row into both files; those of cases that are no more go."""
    known = read() | {key: row}
    rows = {case.key: known[case.key] for case in all_cases() if case.key in known}
    lines = ",\n".join(f'  "{name}": {json.dumps(values)}' for name, values in rows.items())
    where = json.dumps(dict(environment))
    TABLE.write_text(f'{{"environment": {where},\n "rows": {{\n{lines}\n}}}}\n')
    DOCUMENT.write_text(document(rows, environment))


def document(rows: Mapping[str, Row], environment: Mapping[str, str]) -> str:
    """All of it in Markdown."""
    lines = [_HEADER, ["---"] * len(_HEADER)]
    lines += [_cells(case, rows[case.key]) for case in all_cases() if case.key in rows]
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    left = [case.key for case in all_cases() if case.key not in rows]
    missing = f"\nNot compiled yet: {'; '.join(left)}.\n" if left else ""
    presets = "\n".join(f"- {name}: {task.title}" for name, task in TASKS.items())
    introduction = _INTRODUCTION.format(**environment, presets=presets)
    return f"{introduction}\n{table}{missing}"


def _cells(case: StepCase, row: Row) -> list[str]:
    return [
        case.model,
        case.machine,
        str(case.batch),
        " ".join(case.key.split()[3:]),
        _giga(row.get("arguments")),
        _giga(row.get("peak")),
        _fits(case, row),
        "; ".join(f"{kind} {_exchange(x)}" for kind, x in row.get("collectives", {}).items()),
        str(row.get("kernels", "")),
        f"{row['flops'] / 1e12:.2f}" if "flops" in row else "",
        str(row["seconds"]) if "seconds" in row else "",
        row["day"],
    ]


def _giga(size: int | None) -> str:
    return "" if size is None else f"{size / 1e9:.2f}"


def _fits(case: StepCase, row: Row) -> str:
    share = row["peak"] / MACHINES[case.machine].memory
    return f"{'yes' if row['fits'] else '**no**'}, {share:.0%}"


def _exchange(totals: Mapping[str, int]) -> str:
    text = f"{totals['count']}, {totals['bytes'] / 1e6:.1f} MB"
    if totals["in_loops"]:
        text += f" [{totals['in_loops']}, {totals['bytes_in_loops'] / 1e6:.1f} MB]"
    return text
