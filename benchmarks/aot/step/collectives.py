"""What a compiled program exchanges between devices, read from its text."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator, Sequence

_KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# "%name = TYPE all-gather-start(...", where a type is a shape or a tuple of types.
_INSTRUCTION = re.compile(rf"%\S+ = (.+?) ({'|'.join(_KINDS)})(-start)?\(")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?(\S+) \(.*\{\s*$")
_CALLEE = re.compile(r"(?:calls|to_apply|body|condition|branch_computations)=\{?(%?[\w.\-, %]+)")
_BODY = re.compile(r"body=%?([\w.\-]+)")
_SHAPE = re.compile(r"\b([a-z]+\d+)\[([\d,]*)\]")
_BITS = re.compile(r"\d+")

type Shape = tuple[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Collective:
    """One exchange.

    Attributes:
      kind: "all-gather", "all-reduce", ...
      shapes: dtype and shape of each result, on one device.
      in_loop: whether it may happen more than once a step: it is in the body of a loop.
    """

    kind: str
    shapes: tuple[Shape, ...]
    in_loop: bool

    @property
    def bytes(self) -> int:
        """Size of the results on one device."""
        return sum(math.prod(dims) * _itemsize(dtype) for dtype, dims in self.shapes)


def _itemsize(dtype: str) -> int:
    bits = _BITS.search(dtype)
    return max(1, int(bits.group()) // 8) if bits else 1


def collectives(text: str) -> list[Collective]:
    """All exchanges of a program.

    Args:
      text: the compiled program, as XLA prints it.
    """
    looped = _in_loops(text)
    found, computation = [], ""
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            computation = header.group(1)
        elif match := _INSTRUCTION.search(line):
            result, kind, is_start = match.groups()
            if is_start:  # (operands, results, ...)
                result = _elements(result)[1]
            shapes = tuple(
                (dtype, tuple(int(n) for n in dims.split(",") if n))
                for dtype, dims in _SHAPE.findall(_without_layouts(result))
            )
            found.append(Collective(kind, shapes, computation in looped))
    return found


def _without_layouts(kind: str) -> str:
    return re.sub(r"\{[^{}]*\}", "", kind)


def _elements(kind: str) -> list[str]:
    """Elements of a tuple's type."""
    parts, depth, current = [], 0, ""
    for letter in _without_layouts(kind)[1:-1]:
        depth += (letter == "(") - (letter == ")") + (letter == "[") - (letter == "]")
        if letter == "," and depth == 0:
            parts.append(current)
            current = ""
        else:
            current += letter
    return [*parts, current]


def _in_loops(text: str) -> set[str]:
    """Names of the computations that loops call, directly or not."""
    calls: dict[str, set[str]] = {}
    computation = ""
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            computation = header.group(1)
        for names in _CALLEE.findall(line):
            calls.setdefault(computation, set()).update(re.findall(r"[\w.\-]+", names))
    reached, left = set(), _BODY.findall(text)
    while left:
        name = left.pop()
        if name not in reached:
            reached.add(name)
            left.extend(calls.get(name, ()))
    return reached


def unexpected(
    found: Iterable[Collective],
    parameters: Iterable[Sequence[int]],
    image: Sequence[int],
    fsdp: int,
) -> list[Collective]:
    """Exchanges that move activations: all but sums, parameters' gathers and mixup's partners.

    Sums (all-reduce, reduce-scatter) are of gradients and metrics. Parameters are known by their
    shapes, in any order of axes; images and labels of a batch by their integer types.

    Args:
      found: the exchanges of a step.
      parameters: shape of each parameter.
      image: shape of an image, [H, W, C].
      fsdp: devices that parameters are split over, which may show as an axis of its own.
    """
    known = {_signature(shape) for whole in parameters for shape in _as_gathered(whole, fsdp)}

    def is_expected(kind: str, dtype: str, dims: tuple[int, ...]) -> bool:
        if kind in ("all-reduce", "reduce-scatter") or math.prod(dims) <= 1:
            return True
        if kind == "collective-permute" and dtype in ("u8", "s32"):
            return len(dims) == 1 or _signature(dims[-3:]) == _signature(image)
        return kind == "all-gather" and _signature(dims) in known

    return [x for x in found if not all(is_expected(x.kind, *shape) for shape in x.shapes)]


def rounded(found: Iterable[Collective]) -> list[Collective]:
    """Sums over devices that are rounded to 16 bits for each of them."""
    sums = [x for x in found if x.kind in ("all-reduce", "reduce-scatter")]
    return [x for x in sums if any(_itemsize(dtype) == 2 for dtype, _ in x.shapes)]


def _as_gathered(shape: Sequence[int], fsdp: int) -> Iterator[tuple[int, ...]]:
    yield tuple(shape)
    for axis, size in enumerate(shape):
        if size % fsdp == 0:
            yield (*shape[:axis], fsdp, size // fsdp, *shape[axis + 1 :])


def _signature(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(sorted(n for n in shape if n != 1))


def totals(found: Iterable[Collective]) -> dict[str, dict[str, int]]:
    """Number and bytes of each kind, those in loops counted once and told apart."""
    out: dict[str, dict[str, int]] = {}
    for x in found:
        row = out.setdefault(x.kind, {"count": 0, "bytes": 0, "in_loops": 0, "bytes_in_loops": 0})
        row["count"] += 1
        row["bytes"] += x.bytes
        row["in_loops"] += x.in_loop
        row["bytes_in_loops"] += x.bytes if x.in_loop else 0
    return out
