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
# Where an instruction comes from: its name in the traced program, and a row of the table of frames.
_NAME = re.compile(r'op_name="([^"]*)"')
_FRAME = re.compile(r"stack_frame_id=(\d+)")
_NUMBER = r"{}=(\d+)"
# The compiler may put scalars together, such as the loss and what else is logged.
_SCALARS = 8

type Shape = tuple[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Collective:
    """One exchange.

    Attributes:
      kind: "all-gather", "all-reduce", ...
      shapes: dtype and shape of each result, on one device.
      in_loop: whether it may happen more than once a step: it is in the body of a loop.
      name: what the traced program calls it, "" where the compiler does not tell.
      functions: of the source that it comes from, the innermost first.
    """

    kind: str
    shapes: tuple[Shape, ...]
    in_loop: bool
    name: str = ""
    functions: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        """Size of the results on one device."""
        return sum(math.prod(dims) * _itemsize(dtype) for dtype, dims in self.shapes)

    @property
    def is_sum(self) -> bool:
        """Whether it adds up over devices."""
        return self.kind in ("all-reduce", "reduce-scatter")

    @property
    def of_norms(self) -> bool:
        """Whether it makes statistics of a batch over devices, or their gradients."""
        return self.is_sum and any(name.startswith("BatchNorm.") for name in self.functions)

    @property
    def in_forward_pass(self) -> bool:
        """Whether it is of the forward pass, as far as the name tells."""
        return "jvp(" in self.name and "transpose(" not in self.name


def _itemsize(dtype: str) -> int:
    bits = _BITS.search(dtype)
    return max(1, int(bits.group()) // 8) if bits else 1


def collectives(text: str) -> list[Collective]:
    """All exchanges of a program.

    Args:
      text: the compiled program, as XLA prints it.
    """
    looped, functions = _in_loops(text), _functions(text)
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
            name, frame = _NAME.search(line), _FRAME.search(line)
            found.append(
                Collective(
                    kind,
                    shapes,
                    computation in looped,
                    name.group(1) if name else "",
                    functions.get(int(frame.group(1)), ()) if frame else (),
                )
            )
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


def _functions(text: str) -> dict[int, tuple[str, ...]]:
    """Names of the functions of each stack frame, the innermost first."""
    names, locations, frames = (
        _table(text, heading) for heading in ("FunctionNames", "FileLocations", "StackFrames")
    )

    def chain(frame: int) -> tuple[str, ...]:
        found: list[str] = []
        while True:
            location = locations[_number("file_location_id", frames[frame])]
            found.append(names[_number("function_name_id", location)].strip('"'))
            parent = _number("parent_frame_id", frames[frame])
            if parent in (0, frame):  # the outermost frame is its own parent
                return tuple(found)
            frame = parent

    return {frame: chain(frame) for frame in frames}


def _table(text: str, heading: str) -> dict[int, str]:
    """Rows of a table at the head of a program, by number."""
    found = re.search(rf"^{heading}\n((?:\d+ .*\n)*)", text, re.MULTILINE)
    rows = (line.partition(" ") for line in found.group(1).splitlines()) if found else ()
    return {int(number): rest for number, _, rest in rows}


def _number(name: str, row: str) -> int:
    found = re.search(_NUMBER.format(name), row)
    return int(found.group(1)) if found else 0


def unexpected(
    found: Iterable[Collective],
    parameters: Iterable[Sequence[int]],
    image: Sequence[int],
    fsdp: int,
) -> list[Collective]:
    """Exchanges that move activations: all but sums, parameters' gathers and mixup's partners.

    Sums (all-reduce, reduce-scatter) are of gradients and metrics; in the forward pass, of scalars
    and for norms over the batch. Parameters are known by their shapes, in any order of axes; images
    and labels of a batch by their integer types.

    Args:
      found: the exchanges of a step.
      parameters: shape of each parameter.
      image: shape of an image, [H, W, C].
      fsdp: devices that parameters are split over, which may show as an axis of its own.
    """
    known = {_signature(shape) for whole in parameters for shape in _as_gathered(whole, fsdp)}

    def is_expected(x: Collective, dtype: str, dims: tuple[int, ...]) -> bool:
        if math.prod(dims) <= 1:
            return True
        if x.is_sum:
            return not x.in_forward_pass or x.of_norms or math.prod(dims) <= _SCALARS
        if x.kind == "collective-permute" and dtype in ("u8", "s32"):
            return len(dims) == 1 or _signature(dims[-3:]) == _signature(image)
        return x.kind == "all-gather" and _signature(dims) in known

    return [x for x in found if not all(is_expected(x, *shape) for shape in x.shapes)]


def rounded(found: Iterable[Collective]) -> list[Collective]:
    """Sums over devices that are rounded to 16 bits for each of them."""
    sums = [x for x in found if x.is_sum]
    return [x for x in sums if any(_itemsize(dtype) == 2 for dtype, _ in x.shapes)]


def _as_gathered(shape: Sequence[int], fsdp: int) -> Iterator[tuple[int, ...]]:
    yield tuple(shape)
    for axis, size in enumerate(shape):
        if size % fsdp == 0:
            yield (*shape[:axis], fsdp, size // fsdp, *shape[axis + 1 :])


def _signature(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(sorted(n for n in shape if n != 1))


def totals(found: Iterable[Collective]) -> dict[str, dict[str, int]]:
    """Number and bytes of each kind, those in loops counted once and told apart.

    Sums for norms over the batch are a kind of their own.
    """
    out: dict[str, dict[str, int]] = {}
    for x in found:
        kind = f"{x.kind} for norms" if x.of_norms else x.kind
        row = out.setdefault(kind, {"count": 0, "bytes": 0, "in_loops": 0, "bytes_in_loops": 0})
        row["count"] += 1
        row["bytes"] += x.bytes
        row["in_loops"] += x.in_loop
        row["bytes_in_loops"] += x.bytes if x.in_loop else 0
    return out
