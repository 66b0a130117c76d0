"""What XLA's own cost model expects of a program for TPUs, read from the compiled text."""

from __future__ import annotations

import re

_COMPUTATION = re.compile(r"^(ENTRY )?%?(\S+) \(.*\{\s*$")
_CYCLES = re.compile(r'"estimated_cycles":"?(\d+)')
_BODY = re.compile(r" while\(.*body=%?([\w.\-]+)")
_CONDITION = re.compile(r" while\(.*condition=%?([\w.\-]+)")
# How long a loop goes on: as long as its counter, from 0, is less than a constant.
_CONSTANT = re.compile(r"%(\S+) = s32\[\]\S* constant\((\d+)\)")
_COMPARED = re.compile(r"ROOT .* compare\(%\S+, %([\w.\-]+)\), direction=LT")
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

    def turns(loop: str) -> int:
        condition = _CONDITION.search(loop)
        text = "\n".join(lines.get(condition.group(1), ())) if condition else ""
        compared = _COMPARED.search(text)
        constants = dict(_CONSTANT.findall(text))
        if compared is None or compared.group(1) not in constants:
            raise LookupError(f"a loop of unknown length: {loop.strip()[:80]}")
        return int(constants[compared.group(1)])

    def total(computation: str) -> int:
        found = 0
        for line in lines[computation]:
            if estimate := _CYCLES.search(line):
                found += int(estimate.group(1))
            if body := _BODY.search(line):
                found += turns(line) * total(body.group(1))
            elif called := _CALLED.search(line):
                found += total(called.group(1))
        return found

    return total(entry)
