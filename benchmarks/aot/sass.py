"""What machine code does in its innermost loop: instructions, exponentials, matrix products."""

from __future__ import annotations

import dataclasses
import re

from natjax.kernels.spec import PRODUCTS, Kernel

_LABEL = re.compile(r"^(\.L_x_\d+):")
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(.*?);")
_BRANCH = re.compile(r"\bBRA\b.*`\((\.L_x_\d+)\)")
_EXPONENTIAL = re.compile(r"\bMUFU\.EX2\b")
_COPY = re.compile(r"\bUTMALDG\b")
_SPILL = re.compile(r"\b(?:LDL|STL)\b")
# Products of 16 x 8 x 16 entries a warp, and of 64 x N x 16 four warps, or half as many of TF32;
# Blackwell's are started by one thread and are not counted.
_WARP_PRODUCT = re.compile(r"\bHMMA\.168(16|8)\b")
_GROUP_PRODUCT = re.compile(r"\bHGMMA\.64x(\d+)x(\d+)\b")


@dataclasses.dataclass(frozen=True, slots=True)
class Loop:
    """An innermost loop, as one warp runs it.

    Attributes:
      instructions: of machine code.
      exponentials: among them.
      products: multiply-adds of its matrix products.
      spills: loads and stores of registers that are spilled.
      copies: of boxes into shared memory.
    """

    instructions: int
    exponentials: int
    products: int
    spills: int = 0
    copies: int = 0

    def __sub__(self, other: Loop) -> Loop:
        """What is not in a part."""
        return Loop(*(getattr(self, x.name) - getattr(other, x.name) for x in _FIELDS))


_FIELDS = dataclasses.fields(Loop)


def length(text: str) -> int:
    """Instructions in all."""
    return sum(bool(_INSTRUCTION.match(line)) for line in text.splitlines())


def main_loop(text: str) -> Loop | None:
    """The loop over chunks of a kernel: the first with matrix products, if there is a loop.

    One that goes over a slab again with more care comes after it.
    """
    code, places = _read(text)
    loops = [code[begin : place + 1] for place, begin in _backward(code, places).items()]
    for loop in loops:
        if any("MMA" in instruction for instruction in loop):
            return _count(loop)
    return _count(max(loops, key=len)) if loops else None


def loops(text: str) -> list[tuple[range, Loop]]:
    """All loops, the shortest first: at which instructions, and what they do.

    A wait that has to try again does so in a short loop behind the end of the code, from where it
    goes back, which is no loop.
    """
    code, places = _read(text)
    backward = _backward(code, places)
    found = [
        (range(begin, place + 1), _count(code[begin : place + 1]))
        for place, begin in backward.items()
        if place - 1 not in backward
    ]
    return sorted(found, key=lambda loop: len(loop[0]))


def _read(text: str) -> tuple[list[str], dict[str, int]]:
    """Instructions, and at which of them each label is."""
    code: list[str] = []
    places: dict[str, int] = {}
    for line in text.splitlines():
        if match := _LABEL.match(line):
            places[match.group(1)] = len(code)
        elif match := _INSTRUCTION.match(line):
            code.append(match.group(1))
    return code, places


def _backward(code: list[str], places: dict[str, int]) -> dict[int, int]:
    """Where branches go back, by where they are."""
    return {
        place: places[match.group(1)]
        for place, instruction in enumerate(code)
        if (match := _BRANCH.search(instruction)) and places.get(match.group(1), place) < place
    }


def _count(loop: list[str]) -> Loop:
    text = "\n".join(loop)
    narrow = sum(16 * 8 * int(k) for k in _WARP_PRODUCT.findall(text))
    wide = sum(64 * int(n) * int(k) for n, k in _GROUP_PRODUCT.findall(text))
    return Loop(
        instructions=len(loop),
        exponentials=len(_EXPONENTIAL.findall(text)),
        spills=len(_SPILL.findall(text)),
        copies=len(_COPY.findall(text)),
        products=narrow + wide // 4,
    )


def whole(text: str) -> Loop:
    """The same counts of all of the code, for kernels that have no loop."""
    return _count(_read(text)[0])


def needed(
    kernel: Kernel,
    rows: int,
    columns: int,
    width: int,
    warps: int,
    *,
    is_online: bool = True,
    times: int = 1,
    is_tcgen05: bool = False,
) -> tuple[float, float]:
    """Exponentials of a thread, and multiply-adds of a warp, that a chunk takes at least.

    Args:
      kernel: which kernel.
      rows: of a block.
      columns: of a block.
      width: head size.
      warps: that share the block.
      is_online: whether a softmax goes chunk by chunk, and rescales what came before.
      times: products that each product of the block is made of.
      is_tcgen05: whether products are Blackwell's, of which threads have a part of four rows in 32.
    """
    entries = rows * columns / (32 * warps)
    # Each thread has a part of two rows in sixteen, and rescales their sums and accumulators, which
    # may be laid out differently. Warps that share the columns of sixteen rows rescale them all.
    rescaled = rows / (4 * min(warps, rows // 16)) if kernel == "forward" and is_online else 0
    if is_tcgen05:
        rescaled *= 2
    has_weights = kernel in ("forward", "dquery", "dkeyvalue", "dbias")
    exponentials = entries + rescaled if has_weights else 0
    return exponentials, times * PRODUCTS[kernel] * rows * columns * width / warps
