"""Reading what libtpu dumps of a kernel: bundles of instructions, and which units they keep busy.

A bundle is what a core issues in one cycle if nothing stalls it. The final code of a kernel is one
file with a bundle a line, ``>`` for each loop that it is in, and one with the slots of each unit
that a bundle takes, in the same order.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Sequence

_BUNDLE = re.compile(r"\s*(?:0x[0-9a-f]+|0)\s+[A-Z]*\s*:\s*((?:>\s*)*)\{")
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

    count: tuple[int, ...]
    slots: tuple[dict[str, int], ...]
    capacity: dict[str, int]

    def total(self, trips: Sequence[int]) -> int:
        """Bundles of a run in which the loops at each depth turn so often, each within the others.

        Raises:
          ValueError: the code has more depths than there are loops.
        """
        if len(trips) < len(self.count):
            raise ValueError(f"the code has loops of depth {len(self.count) - 1}: {self.count}")
        turns, total = 1, 0
        for count, trip in zip(self.count, trips, strict=False):
            turns *= trip
            total += turns * count
        return total

    def busiest(self, depth: int) -> tuple[str, int]:
        """The unit that a loop keeps busiest, and the fewest bundles that it could do with."""
        slots = self.slots[depth]
        fewest = {
            unit: -(-n // self.capacity[unit])
            for unit, n in slots.items()
            if unit not in _NOT_A_BOUND
        }
        unit = max(fewest, key=lambda x: fewest[x])
        return unit, fewest[unit]


def read(folder: pathlib.Path, kernel: str) -> Bundles:
    """The bundles of a kernel dumped in a folder.

    Raises:
      LookupError: it is not there, or its two files do not belong together.
    """
    code = _only(folder, f"*{kernel}*-final_bundles.txt", without="schedule-analysis")
    table = _only(folder, f"*{kernel}*-final_hlo-static-per-bundle-utilization.txt")
    matches = filter(None, map(_BUNDLE.match, code.read_text().splitlines()))
    depths = [match.group(1).count(">") for match in matches]
    lines = table.read_text().splitlines()
    units = [name.strip() for name in lines[1].split(",")]
    capacity = dict(zip(units, map(int, lines[2].split()), strict=True))
    rows = [list(map(int, line.split())) for line in lines[4:] if line[:1].isdigit()]
    if abs(len(rows) - len(depths)) > 2:
        raise LookupError(f"{kernel}: {len(depths)} bundles, but slots of {len(rows)}")
    deepest = max(depths)
    count = [0] * (deepest + 1)
    slots = [dict.fromkeys(units, 0) for _ in count]
    for depth, row in zip(depths, rows, strict=False):
        count[depth] += 1
        for unit, n in zip(units, row, strict=True):
            slots[depth][unit] += n
    return Bundles(tuple(count), tuple(slots), capacity)


def _only(folder: pathlib.Path, pattern: str, without: str = "\n") -> pathlib.Path:
    found = [path for path in folder.glob(pattern) if without not in path.name]
    if not found:
        raise LookupError(f"no {pattern} was dumped")
    return max(found)
