"""What loading or converting weights did, for people."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable

from natjax.weights.fit import Fit, Mismatch, printable
from natjax.weights.state_dict import StateDict


@dataclasses.dataclass(frozen=True)
class Mapped:
    """Arrays that belong together.

    Attributes:
      theirs: keys of the source.
      ours: names of natjax.
      layout: how the arrays changed.
    """

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    layout: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What was loaded and what was not; ``print(report)`` says it in a few lines.

    Attributes:
      path: the file.
      format: ``"torch"`` or ``"safetensors"``.
      naming: ``"official"``, ``"hf"`` or ``"natjax"``.
      container: where in the file the weights were, with the prefix of their keys.
      mapped: everything loaded.
      missing: keys that the model needs and the file lacks.
      unexpected: keys of the file that the model has no place for.
      mismatched: arrays of another shape.
      nameless: our names that the file's naming has no name for.
      dropped: keys left out with the classifier.
      kept: our names that keep their values, as the classifier was left out.
      resized: keys of position biases that were resized.
      buffers: keys that hold no weights.
      left_out: entries outside the backbone, by the first part of their keys.
    """

    path: str
    format: str
    naming: str
    container: str
    mapped: tuple[Mapped, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[Mismatch, ...]
    nameless: tuple[str, ...]
    dropped: tuple[str, ...]
    kept: tuple[str, ...]
    resized: tuple[str, ...]
    buffers: tuple[str, ...]
    left_out: dict[str, int]

    @property
    def skipped(self) -> tuple[str, ...]:
        """All that did not fit and was passed over, as ``strict=False`` allows."""
        return (
            *(f"missing: {key}" for key in self.missing),
            *(f"unexpected: {key}" for key in self.unexpected),
            *(f"shape: {mismatch}" for mismatch in self.mismatched),
            *(f"no name for: {name}" for name in self.nameless),
        )

    def __str__(self) -> str:
        keys = sum(len(mapped.theirs) for mapped in self.mapped)
        names = sum(len(mapped.ours) for mapped in self.mapped)
        place = f", under {self.container}" if self.container else ""
        lines = [
            f"{self.path}: {keys} arrays with {self.naming} names ({self.format}{place})"
            f" gave {names} parameters"
        ]
        notes = {
            "left out, outside the backbone": [
                f"{printable(k)} ({n})" for k, n in self.left_out.items()
            ],
            "left out with the classifier": summarise(self.dropped),
            "kept as they were": summarise(self.kept),
            "resized": summarise(self.resized),
            "skipped, they hold no weights": summarise(self.buffers),
            "skipped": summarise(self.skipped),
        }
        lines += [f"{what}: {', '.join(items)}" for what, items in notes.items() if items]
        return "\n".join(lines)

    def table(self) -> str:
        """What was mapped to what; numbers in names are stars, and equal rows are counted."""
        rows: dict[tuple[str, ...], int] = {}
        for mapped in self.mapped:
            row = (_stars(", ".join(mapped.theirs)), _stars(", ".join(mapped.ours)), mapped.layout)
            rows[row] = rows.get(row, 0) + 1
        header = ("in the file", "in natjax", "array", "times")
        return text_table(header, [(*row, str(count)) for row, count in rows.items()])


def make_report(source: StateDict, fit: Fit) -> LoadReport:
    """Put a report together."""
    names = ("missing", "unexpected", "mismatched", "nameless", "dropped", "kept", "resized")
    return LoadReport(
        path=source.where,
        format=source.format,
        naming=source.naming.name,
        container=source.container,
        mapped=tuple(Mapped(b.theirs, b.ours, b.layout.name) for b in fit.bindings),
        buffers=fit.buffers,
        left_out=source.left_out,
        **{name: getattr(fit, name) for name in names},
    )


def _stars(name: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.|$|,)", "*", name)


def summarise(names: Iterable[str]) -> list[str]:
    """Names with stars for numbers, each once with its count."""
    counts: dict[str, int] = {}
    for name in names:
        name = _stars(printable(name))
        counts[name] = counts.get(name, 0) + 1
    return [name if count == 1 else f"{name} ({count})" for name, count in counts.items()]


def text_table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Columns of plain text."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [header, tuple("-" * width for width in widths), *rows]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
