"""Results as rows, as a JSON file, and as the table that is printed last."""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from benchmarks.gpu.plan import MODES, VARIANTS, Mode, moved_bytes, useful_flops
from natjax.kernels.tuning.problems import Problem

type Row = dict[str, Any]

RESULTS = pathlib.Path(__file__).parents[1] / "results"

PUBLISHED = """\
What NATTEN publishes of the same two large windows, image-256 and video-30x48x80, but with 24 heads
where the table has 8, in float16, forward, without and with its permutations of tokens (its
documentation, https://github.com/SHI-Labs/NATTEN/blob/main/docs/profiler.md, samples of its
profiler; not measured here):

| device | image-256, ms | video-30x48x80, ms |
| --- | --- | --- |
| H100, hopper-fna | 16.201, 18.603 | 79.043, 84.417 |
| H100, the same with strides of 16x16 and 16x8x8 | 7.914, 10.601 | 23.359, 29.109 |
| H100, full attention by cuDNN | 97.435 | 283.327 |
| B200, blackwell-fna | 8.692, 10.931 | 42.243, 47.353 |
| B200, the same with strides of 16x16 and 16x8x8 | 4.114, 6.389 | 13.010, 18.538 |
| B200, full attention by cuDNN | 43.313 | 135.265 |
"""


def path_of(device_kind: str) -> pathlib.Path:
    """Where the results of a kind of device are kept."""
    return RESULTS / f"gpu-{re.sub(r'[^a-z0-9]+', '-', device_kind.lower()).strip('-')}.json"


def save(path: pathlib.Path, environment: dict[str, Any], rows: Sequence[Row]) -> None:
    """Write what has been measured so far, whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({"environment": environment, "rows": rows}, indent=1) + "\n")
    partial.replace(path)


def fractions(
    problem: Problem, mode: Mode, milliseconds: float, itemsize: int, ceilings: dict[str, float]
) -> dict[str, float]:
    """Useful bytes and flops a second, as fractions of what the device reaches."""
    seconds = milliseconds / 1e3
    moved = moved_bytes(problem, mode, itemsize) / seconds
    computed = useful_flops(problem, mode) / seconds
    return {
        "of_copy_bandwidth": moved / ceilings["copy_bytes_per_second"],
        "of_matmul_rate": computed / ceilings["matmul_flops_per_second"],
    }


def table(rows: Sequence[Row]) -> str:
    """One line a problem and mode; for each peer, how many times as long as natjax it takes."""
    header = ["problem", "mode", "ms", "copy", "matmul", "MB", *(f"{v} x" for v in VARIANTS[1:])]
    lines = [header, ["---"] * len(header)]
    by_name = {(row["problem"], row["mode"], row["variant"]): row for row in rows}
    for name in dict.fromkeys(row["problem"] for row in rows):
        for mode in MODES:
            cells = [by_name.get((name, mode, variant), {}) for variant in VARIANTS]
            if "ms" in cells[0]:
                lines.append(
                    [name, mode, *_own(cells[0]), *(_times(c, cells[0]) for c in cells[1:])]
                )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def reasons(rows: Sequence[Row]) -> str:
    """Why what was not measured was not, each reason once."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if "error" in row:
            found.setdefault(f"{row['variant']}: {row['error']}", []).append(row["problem"])
    return "\n".join(
        f"not measured, {reason} ({', '.join(dict.fromkeys(names))})"
        for reason, names in found.items()
    )


def document(environment: dict[str, Any], rows: Sequence[Row], tests: str) -> str:
    """The results as a page: where, when and how they were made, and the table."""
    ceilings = environment["ceilings"]
    copied = f"{ceilings['copy_bytes_per_second'] / 1e12:.2f} TB/s"
    multiplied = f"{ceilings['matmul_flops_per_second'] / 1e12:.0f} TFLOP/s"
    return f"""# The kernels on {environment["device"]}

Made by `{environment["command"]}` on {environment["date"]}, with jax {environment["jax"]}, natjax
{environment["natjax"]}, torch {environment["torch"]}; arrays in {environment["dtype"]}.
Tests of the kernels on this device, in the same run: {tests}.

Times are of natjax's kernels. "copy" and "matmul" are useful bytes and flops a second, as
fractions of what the device reached in the same run: {copied} copying, {multiplied} multiplying
matrices. "MB" is memory besides the arguments. The last columns tell how many times as long the
others take: "pallas_triton" and "xla", our older kernels and plain implementation; full attention
by cuDNN, which takes no bias; tokamax with mask and bias of all pairs; FlashAttention-4 with a mask
function, which takes no bias; blocked attention, ours with the stride of the window; compiled
FlexAttention, in Triton and by FlashAttention-4. Below 1, natjax loses.

{PUBLISHED}
{reasons(rows)}

{table(rows)}
"""


def _own(row: Row) -> list[str]:
    if "ms" not in row:
        return ["-"] * 4
    return [
        f"{row['ms']:.3f}",
        f"{row['of_copy_bandwidth']:.0%}",
        f"{row['of_matmul_rate']:.0%}",
        f"{row['memory_bytes'] / 1e6:.0f}",
    ]


def _times(row: Row, own: Row) -> str:
    return f"{row['ms'] / own['ms']:.2f}" if "ms" in row and "ms" in own else "-"
