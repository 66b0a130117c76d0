"""Comparison of a source with a model: what fits, what does not, and the arrays of what does."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping

import numpy as np

from natjax.nn.position_bias import resize_rpb
from natjax.weights.errors import WeightsError
from natjax.weights.layouts import Shape
from natjax.weights.naming import Binding
from natjax.weights.state_dict import StateDict

_SHOWN = 20


def printable(name: str) -> str:
    """A name from a stranger's file, harmless to a terminal."""
    return name if name.isprintable() else repr(name)


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
        return f"{self.key}: {self.found} in the file, {self.expected} in the model{advice}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit:
    """A source laid beside a model.

    Attributes:
      bindings: what can be loaded.
      resized: keys of position biases to be resized.
      missing: keys that the model needs and the source lacks.
      unexpected: keys of the source that the model has no place for.
      mismatched: arrays that do not fit.
      nameless: our names that the source's naming has no name for.
      dropped: keys left out on request.
      kept: our names that keep the values they have, on request.
      buffers: keys that hold no weights.
    """

    bindings: tuple[Binding, ...]
    resized: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[Mismatch, ...]
    nameless: tuple[str, ...]
    dropped: tuple[str, ...]
    kept: tuple[str, ...]
    buffers: tuple[str, ...]

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


class MismatchError(WeightsError):
    """Weights and model do not fit; the message lists all that is wrong.

    Attributes:
      fit: the comparison.
    """

    def __init__(self, source: StateDict, fit: Fit):
        self.fit = fit
        counts = ", ".join(f"{len(found)} {kind}" for kind, found in fit.faults.items())
        lines = [f"{source.where} does not fit the model: {counts}; nothing was loaded"]
        for kind, found in fit.faults.items():
            lines.append(f"{kind}:")
            lines += [f"  {printable(item)}" for item in found[:_SHOWN]]
            lines += [f"  ... and {len(found) - _SHOWN} more"] if len(found) > _SHOWN else []
        super().__init__("\n".join(lines + _advice(source, fit)))


def _advice(source: StateDict, fit: Fit) -> list[str]:
    bindings = (source.naming.translate(k, source.root) for k in (*fit.missing, *fit.unexpected))
    if any(binding is not None and _is_task_name(binding.ours[0]) for binding in bindings):
        return [
            "drop_head=True (--drop-head) leaves out the classifier and the norms before it that"
            " only one of the two has"
        ]
    return []


def compare(
    source: StateDict,
    shapes: Mapping[str, Shape],
    *,
    drop_head: bool = False,
    resize_bias: bool = False,
) -> Fit:
    """Lay a source beside a model.

    Args:
      source: the weights.
      shapes: shape of each parameter of the model.
      drop_head: leave the classifier out, and the final norm and the output norms where only one
        of the two has them.
      resize_bias: let position biases of another size pass, to be resized.
    """
    dropped = set(_dropped_keys(source, shapes)) if drop_head else set()
    keys = {key for key in source.arrays if key not in dropped}
    buffers = [key for key in keys if key.endswith(source.naming.buffers or ("\0",))]
    bindings, nameless = source.naming.bind(shapes, source.root)

    fits, missing, mismatched, resized, kept, expected = [], [], [], [], [], set()
    for binding in bindings:
        wanted = binding.their_shapes(shapes)
        absent = [key for key in wanted if key not in keys]
        if drop_head and absent and all(map(_is_task_name, binding.ours)):
            kept += binding.ours
            continue
        expected.update(wanted)
        wrong = [
            mismatch
            for key, shape in wanted.items()
            if key in keys and (mismatch := _mismatch(key, source.arrays[key], shape))
        ]
        if resize_bias and len(wrong) == 1 and wrong[0].advice == _RESIZE:
            resized += wanted
            wrong = []
        missing += absent
        mismatched += wrong
        if not absent and not wrong:
            fits.append(binding)
    return Fit(
        bindings=tuple(fits),
        resized=tuple(resized),
        missing=tuple(missing),
        unexpected=tuple(sorted(keys - expected - set(buffers))),
        mismatched=tuple(mismatched),
        nameless=tuple(nameless),
        dropped=tuple(sorted(dropped)),
        kept=tuple(kept),
        buffers=tuple(sorted(buffers)),
    )


def _dropped_keys(source: StateDict, shapes: Mapping[str, Shape]) -> list[str]:
    dropped = []
    for key in source.arrays:
        binding = source.naming.translate(key, source.root)
        names = () if binding is None else binding.ours
        if any(name.startswith("head.") for name in names) or (
            any(map(_is_task_name, names)) and not any(name in shapes for name in names)
        ):
            dropped.append(key)
    return dropped


def _is_task_name(name: str) -> bool:
    """Whether one of ours belongs to the task, not to the backbone."""
    return re.match(r"(head|norm\d*)\.", name) is not None


_RESIZE = "resize_rpb=True (--resize-rpb) resizes it"


def _mismatch(key: str, array: np.ndarray, shape: Shape) -> Mismatch | None:
    found, expected = f"{array.dtype.name}{list(array.shape)}", str(list(shape))
    if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
        return Mismatch(key, found, f"{expected} of floats")
    if array.shape == shape:
        return None
    advice = ""
    if key.endswith(".rpb") and array.ndim == 3 and array.shape[0] == shape[0] and array.size:
        advice = _RESIZE
    elif key.startswith(("head.", "classifier.")):
        advice = "drop_head=True (--drop-head) leaves the classifier out"
    return Mismatch(key, found, expected, advice)


def take_arrays(
    source: StateDict, fit: Fit, shapes: Mapping[str, Shape]
) -> Iterator[tuple[str, np.ndarray]]:
    """Our name and array of all that fits; the source forgets what has been taken."""
    resized = set(fit.resized)
    for binding in fit.bindings:
        theirs = tuple(source.arrays.pop(key) for key in binding.theirs)
        ours = binding.layout.to_ours(theirs)
        for name, array in zip(binding.ours, ours, strict=True):
            is_resized = not resized.isdisjoint(binding.theirs)
            rows, columns = shapes[name][-2:] if is_resized else (0, 0)
            yield name, resize_rpb(array, (rows, columns)) if is_resized else array
