"""Reading what libtpu dumps of a kernel: bundles of instructions, and which units they keep busy.

A bundle is what a core issues in one cycle if nothing stalls it. The final code of a kernel is one
file with a bundle a line, ``>`` for each loop that it is in, and one with the slots of each unit
that a bundle takes, in the same order.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import re
from collections.abc import Sequence

_BUNDLE = re.compile(r"\s*(?:0x[0-9a-f]+|0)\s+[A-Z]*\s*:\s*((?:>\s*)*)\{")
_BRANCH = re.compile(r"sbr\.rel \(!?%\w+\) target = .*?region(?: = )?(\d+)")
_ALLOCATION = re.compile(r"space=vmem, size = (0x[0-9a-f]+|0), offset = (0x[0-9a-f]+|0)")
# Scalar slots are never what a loop waits for, and fills and spills count as loads and stores too.
_NOT_A_BOUND = ("SALU", "VLOAD:FILL", "VSTORE:SPILL")


@dataclasses.dataclass(frozen=True, slots=True)
class Bundles:
    """A kernel's final code, by the depth of its loops.

    Attributes:
      count: bundles at each depth.
      slots: slots of each unit that they take, at each depth.
      capacity: slots of each unit that one bundle has.
    """

    count: tuple[float, ...]
    slots: tuple[dict[str, float], ...]
    capacity: dict[str, int]

    def total(self, trips: Sequence[int]) -> float:
        """Bundles of a run in which the loops at each depth turn so often, each within the others.

        Raises:
          ValueError: the code has more depths than there are loops.
        """
        if len(trips) < len(self.count):
            raise ValueError(f"the code has loops of depth {len(self.count) - 1}: {self.count}")
        turns, total = 1, 0.0
        for count, trip in zip(self.count, trips, strict=False):
            turns *= trip
            total += turns * count
        return total

    def busiest(self, depth: int) -> tuple[str, int]:
        """The unit that a loop keeps busiest, and the fewest bundles that it could do with."""
        slots = self.slots[depth]
        fewest = {
            unit: math.ceil(n / self.capacity[unit])
            for unit, n in slots.items()
            if unit not in _NOT_A_BOUND
        }
        unit = max(fewest, key=lambda x: fewest[x])
        return unit, fewest[unit]


def read(folder: pathlib.Path, kernel: str, shares: Sequence[float] = ()) -> Bundles:
    """The bundles of a kernel dumped in a folder.

    Args:
      folder: where it was dumped.
      kernel: its name.
      shares: how often what each branch of the body of its grid may skip is run, as a share of how
        often the grid turns, in the order of the code.

    Raises:
      LookupError: it is not there, its two files do not belong together, or it has another number
        of branches.
    """
    code = _only(folder, f"*{kernel}*-final_bundles.txt", without="schedule-analysis")
    table = _only(folder, f"*{kernel}*-final_hlo-static-per-bundle-utilization.txt")
    text = [line for line in code.read_text().splitlines() if _BUNDLE.match(line)]
    lines = table.read_text().splitlines()
    units = [name.strip() for name in lines[1].split(",")]
    capacity = dict(zip(units, map(int, lines[2].split()), strict=True))
    rows = [list(map(int, line.split())) for line in lines[4:] if line[:1].isdigit()]
    if abs(len(rows) - len(text)) > 2:
        raise LookupError(f"{kernel}: {len(text)} bundles, but slots of {len(rows)}")
    depths = [_depth(line) for line in text]
    weights = _weights(text, shares)
    count = [0.0] * (max(depths) + 1)
    slots = [dict.fromkeys(units, 0.0) for _ in count]
    for depth, weight, row in zip(depths, weights, rows, strict=False):
        count[depth] += weight
        for unit, n in zip(units, row, strict=True):
            slots[depth][unit] += weight * n
    while not count[-1]:
        count, slots = count[:-1], slots[:-1]
    return Bundles(tuple(count), tuple(slots), capacity)


def _depth(line: str) -> int:
    return line.split("{")[0].count(">")


def _weights(text: Sequence[str], shares: Sequence[float]) -> list[float]:
    """How often each bundle is run, if what the branches of the body skip is run so often."""
    weights = [1.0] * len(text)
    if not shares:
        return weights
    # One of the two cores of a v5p may skip the whole grid.
    skipped = [span for span in _skipped(text) if _depth(text[span[0] - 1])]
    # The grid turns once more than there are steps, to copy blocks, and then skips the body.
    body = max(skipped, key=lambda span: span[1] - span[0], default=(0, 0))
    inside = [span for span in skipped if span != body and _holds(body, span)]
    branches = [x for x in inside if not any(x != y and _holds(y, x) for y in inside)]
    if len(branches) != len(shares):
        raise LookupError(f"{len(branches)} branches in the body of the grid, not {len(shares)}")
    for (first, end), share in zip(sorted(branches), shares, strict=True):
        weights[first:end] = [share] * (end - first)
    return weights


def _skipped(text: Sequence[str]) -> list[tuple[int, int]]:
    """What branches may skip: first bundle, and one past the last."""
    skipped, open_, forward = [], [], _forward_branches(text)
    for i, line in enumerate(text):
        if " PF:" in line.split("{")[0] and open_:
            skipped.append((open_.pop(), i))
        if i in forward:
            open_.append(i + 1)
    return skipped


def _forward_branches(text: Sequence[str]) -> set[int]:
    """All but those that go back to the beginnings of loops, whose regions libtpu numbers last."""
    found = ((i, _BRANCH.search(line)) for i, line in enumerate(text))
    regions = {i: int(match[1]) for i, match in found if match}
    loops = sum(" LB:" in line.split("{")[0] for line in text)
    return set(sorted(regions, key=lambda i: regions[i])[: max(0, len(regions) - loops)])


def _holds(outer: tuple[int, int], inner: tuple[int, int]) -> bool:
    return outer[0] <= inner[0] and inner[1] <= outer[1]


def vmem(folder: pathlib.Path, kernel: str) -> int:
    """Bytes of vector memory that a kernel dumped in a folder takes.

    Raises:
      LookupError: it is not there.
    """
    code = _only(folder, f"*{kernel}*-post-delay-converter.txt")
    places = _ALLOCATION.findall(code.read_text())
    return max((int(size, 16) + int(at, 16) for size, at in places), default=0)


def _only(folder: pathlib.Path, pattern: str, without: str = "\n") -> pathlib.Path:
    found = [path for path in folder.glob(pattern) if without not in path.name]
    if not found:
        raise LookupError(f"no {pattern} was dumped")
    return max(found)
