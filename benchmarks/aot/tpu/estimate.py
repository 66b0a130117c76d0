"""What XLA's own cost model expects of a program for TPUs, read from the compiled text."""

from __future__ import annotations

import re

_COMPUTATION = re.compile(r"^(ENTRY )?%?(\S+) \(.*\{\s*$")
_CYCLES = re.compile(r'"estimated_cycles":"?(\d+)')
_BODY = re.compile(r" while\(.*body=%?([\w.\-]+)")
_TURNS = re.compile(r'"?known_trip_count"?:\{"n":"(\d+)"')
_CALLED = re.compile(r" (?:call|conditional)\(.*?(?:to_apply|branch_computations)=\{?%?([\w.\-]+)")


def cycles(text: str) -> int:
    """Estimated cycles of all instructions, those of loops as often as these turn.

    Kernels have no estimate, and count nothing.

    Args:
      text: the compiled program, as XLA prints it.

    Raises:
      LookupError: it has no entry, or a loop of which it does not tell how often it turns.
    """
    lines: dict[str, list[str]] = {}
    entry, current = None, ""
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            current = header.group(2)
            entry = current if header.group(1) else entry
        lines.setdefault(current, []).append(line)
    if entry is None:
        raise LookupError("the program has no entry")

    def total(computation: str) -> int:
        found = 0
        for line in lines[computation]:
            if estimate := _CYCLES.search(line):
                found += int(estimate.group(1))
            if body := _BODY.search(line):
                turns = _TURNS.search(line)
                if turns is None:
                    raise LookupError(f"a loop of unknown length: {line.strip()[:80]}")
                found += int(turns.group(1)) * total(body.group(1))
            elif called := _CALLED.search(line):
                found += total(called.group(1))
        return found

    return total(entry)
