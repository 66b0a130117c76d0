"""Weights laid beside a model: what fits and what does not, for programs and for people."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterable, Mapping

import numpy as np

from natjax.weights.names import Binding, Shape
from natjax.weights.state_dict import StateDict
from natjax.weights.untrusted import WeightsError, show, show_some

_RESIZE = "resize_rpb=True (--resize-rpb) resizes it"


@dataclasses.dataclass(frozen=True)
class Mismatch:
    """An array of another shape, or of numbers that are no parameters.

    Attributes:
      key: of the source.
      found: shape and dtype there.
      expected: shape that the model needs.
      advice: what would make it fit; may be empty.
    """

    key: str
    found: str
    expected: str
    advice: str = ""

    def __str__(self) -> str:
        advice = f" ({self.advice})" if self.advice else ""
        key = show(self.key, bare=True)
        return f"{key}: {self.found} in the file, {self.expected} in the model{advice}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What is loaded and what is not; ``print(report)`` says it in a few lines.

    Attributes:
      path: the file.
      format: ``"torch"``, ``"safetensors"``, or ``"arrays"`` for a dict.
      naming: ``"official"``, ``"hf"`` or ``"natjax"``.
      container: where in the file the weights were, with the prefix of their keys.
      has_average: whether the file holds averaged weights too, which were not asked for.
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
    has_average: bool
    mapped: tuple[Binding, ...]
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
    def faults(self) -> dict[str, tuple[str, ...]]:
        """All that is wrong, by kind."""
        kinds = {
            "missing in the file": self.missing,
            "unexpected in the file": self.unexpected,
            "not of the model's shape": tuple(map(str, self.mismatched)),
            "without a name in this naming": self.nameless,
        }
        return {kind: found for kind, found in kinds.items() if found}

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
        keys = sum(len(binding.theirs) for binding in self.mapped)
        names = sum(len(binding.ours) for binding in self.mapped)
        place = f", under {show(self.container, bare=True)}" if self.container else ""
        lines = [
            f"{self.path}: {keys} arrays with {self.naming} names ({self.format}{place})"
            f" gave {names} parameters"
        ]
        notes = {
            "left out, outside the backbone": _counted(self.left_out, always=True),
            "left out with the classifier": summarise(self.dropped),
            "kept as they were": summarise(self.kept),
            "resized": summarise(self.resized),
            "skipped, they hold no weights": summarise(self.buffers),
            "skipped": summarise(self.skipped),
            "not taken": ["averaged weights (ema=True, --ema)"] if self.has_average else [],
        }
        lines += [f"{what}: {', '.join(items)}" for what, items in notes.items() if items]
        return "\n".join(lines)

    def table(self) -> str:
        """What was mapped to what; numbers in names are stars, and equal rows are counted."""
        rows: dict[tuple[str, ...], int] = {}
        for binding in self.mapped:
            names = (_stars(", ".join(names)) for names in (binding.theirs, binding.ours))
            row = (*names, binding.layout.name)
            rows[row] = rows.get(row, 0) + 1
        header = ("in the file", "in natjax", "array", "times")
        return text_table(header, [(*row, str(count)) for row, count in rows.items()])


class MismatchError(WeightsError):
    """Weights and model do not fit; the message lists what is wrong, up to 20 of each kind.

    Attributes:
      report: all of it.
    """

    def __init__(self, source: StateDict, report: LoadReport):
        self.report = report
        counts = ", ".join(f"{len(found)} {kind}" for kind, found in report.faults.items())
        lines = [f"{source.where} does not fit the model: {counts}; nothing was loaded"]
        for kind, found in report.faults.items():
            is_shape = kind == "not of the model's shape"
            shown = _some_mismatches(found) if is_shape else show_some(list(found))
            lines += [f"{kind}:", *(f"  {item}" for item in shown)]
        super().__init__("\n".join(lines + _advice(source, report)))


def _some_mismatches(found: tuple[str, ...], most: int = 20) -> list[str]:
    more = [f"... and {len(found) - most} more"] if len(found) > most else []
    return [*found[:most], *more]


def _advice(source: StateDict, report: LoadReport) -> list[str]:
    keys = (*report.missing, *report.unexpected)
    bindings = (source.naming.translate(key, source.root) for key in keys)
    if any(
        binding is not None and source.naming.is_closing(binding.ours[0]) for binding in bindings
    ):
        return [
            "drop_head=True (--drop-head) leaves out the classifier and the norms before it that"
            " only one of the two has"
        ]
    return []


def compare(
    source: StateDict,
    shapes: Mapping[str, Shape],
    *,
    integers: Collection[str] = (),
    drop_head: bool = False,
    resize_rpb: bool = False,
) -> LoadReport:
    """Lay a source beside a model.

    Args:
      source: the weights.
      shapes: shape of each parameter of the model.
      integers: names of those that are integers; the others are floats.
      drop_head: leave the classifier out, and the final norm and the output norms where only one
        of the two has them.
      resize_rpb: let position biases of another size pass, to be resized.
    """
    naming = source.naming
    dropped = set(_dropped_keys(source, shapes)) if drop_head else set()
    keys = {key for key in source.arrays if key not in dropped}
    bindings, nameless = naming.bind(shapes, source.root)

    fits, missing, mismatched, resized, kept, expected = [], [], [], [], [], set()
    for binding in bindings:
        wanted = binding.their_shapes(shapes)
        absent = [key for key in wanted if key not in keys]
        if drop_head and absent and all(map(naming.is_closing, binding.ours)):
            kept += binding.ours
            continue
        expected.update(wanted)
        kinds = "f" if set(binding.ours).isdisjoint(integers) else "iu"
        wrong = _mismatches(source, wanted, keys, kinds)
        if resize_rpb and len(wrong) == 1 and wrong[0].advice == _RESIZE:
            resized += wanted
            wrong = []
        missing += absent
        mismatched += wrong
        if not absent and not wrong:
            fits.append(binding)
    others = keys - expected
    buffers = {key for key in others if naming.is_buffer(key)}
    return LoadReport(
        path=source.where,
        format=source.format,
        naming=naming.name,
        container=source.container,
        has_average=source.has_average,
        mapped=tuple(fits),
        resized=tuple(resized),
        missing=tuple(missing),
        unexpected=tuple(sorted(others - buffers)),
        mismatched=tuple(mismatched),
        nameless=tuple(nameless),
        dropped=tuple(sorted(dropped)),
        kept=tuple(kept),
        buffers=tuple(sorted(buffers)),
        left_out=source.left_out,
    )


def _dropped_keys(source: StateDict, shapes: Mapping[str, Shape]) -> list[str]:
    naming, dropped = source.naming, []
    for key in source.arrays:
        binding = naming.translate(key, source.root)
        names = () if binding is None else binding.ours
        if any(map(naming.is_head, names)) or (
            any(map(naming.is_closing, names)) and not any(name in shapes for name in names)
        ):
            dropped.append(key)
    return dropped


def _mismatches(
    source: StateDict, wanted: Mapping[str, Shape], keys: Collection[str], kinds: str
) -> list[Mismatch]:
    """Those arrays of a binding that are there and do not fit."""
    wrong = []
    for key, shape in wanted.items():
        if key not in keys:
            continue
        array = source.arrays[key]
        kind = "f" if array.dtype.name == "bfloat16" else array.dtype.kind
        if kind in kinds and array.shape == shape:
            continue
        found, expected = f"{array.dtype.name}{list(array.shape)}", str(list(shape))
        if kind not in kinds:
            of = "floats" if kinds == "f" else "integers"
            wrong.append(Mismatch(key, found, f"{expected} of {of}"))
        else:
            wrong.append(Mismatch(key, found, expected, _shape_advice(source, key, array, shape)))
    return wrong


def _shape_advice(source: StateDict, key: str, array: np.ndarray, shape: Shape) -> str:
    # Square ones alone: resizing takes memory by the sides, which a long thin table has for little.
    is_table = key.endswith(".rpb") and array.ndim == 3 and array.shape[1] == array.shape[2] > 0
    if is_table and array.shape[0] == shape[0]:
        return _RESIZE
    binding = source.naming.translate(key, source.root)
    if binding is not None and any(map(source.naming.is_head, binding.ours)):
        return "drop_head=True (--drop-head) leaves the classifier out"
    return ""


def _stars(name: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.|$|,)", "*", name)


def summarise(names: Iterable[str]) -> list[str]:
    """Names with stars for numbers, each once with its count; the first 20 of them."""
    counts: dict[str, int] = {}
    for name in names:
        name = _stars(name)
        counts[name] = counts.get(name, 0) + 1
    return _counted(counts)


def _counted(counts: dict[str, int], *, always: bool = False, most: int = 20) -> list[str]:
    shown = [
        show(name, bare=True, longest=300) + (f" ({count})" if always or count > 1 else "")
        for name, count in list(counts.items())[:most]
    ]
    return [*shown, f"... and {len(counts) - most} more"] if len(counts) > most else shown


def text_table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Columns of plain text."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [header, tuple("-" * width for width in widths), *rows]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
