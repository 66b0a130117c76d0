"""The command ``natjax models``: a table of all models."""

from __future__ import annotations

import argparse
import difflib
import sys


def add_models(commands: argparse._SubParsersAction) -> None:
    """Add the command to a parser."""
    parser = commands.add_parser(
        "models", help="names, parameters and FLOPs", description="List models."
    )
    parser.add_argument("pattern", metavar="PATTERN", nargs="?", default="*", help="such as nat_*")
    parser.set_defaults(command=_models)


def _models(args: argparse.Namespace) -> int:
    try:
        table = model_table(args.pattern)
    except ValueError as error:
        sys.stderr.write(f"natjax: {error}\n")
        return 2
    sys.stdout.write(f"{table}\n")
    return 0


def model_table(pattern: str = "*") -> str:
    """Return names, parameters and FLOPs of the models that match a shell pattern.

    A FLOP is a multiply-add, as in the papers, of one image of the size in the last column.

    Args:
      pattern: such as ``"nat_*"``.

    Raises:
      ValueError: no name matches; near names are suggested.
    """
    import natjax

    names = natjax.list_models(pattern)
    if not names:
        near = difflib.get_close_matches(pattern.strip("*"), natjax.list_models(), cutoff=0.5)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise ValueError(f"no model matches {pattern!r}{hint} (`natjax models` lists all)")
    rows = [("model", "kind", "parameters", "FLOPs", "image")]
    for summary in map(natjax.model_summary, names):
        side = "x".join(map(str, summary.image_size))
        counts = with_unit(summary.parameters), with_unit(summary.flops)
        rows.append((summary.name, summary.kind, *counts, side))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [_line(row, widths) for row in (rows[0], ["-" * width for width in widths], *rows[1:])]
    return "\n".join([*lines, "FLOPs are multiply-adds of one image"])


def _line(row: tuple[str, ...] | list[str], widths: list[int]) -> str:
    """Names to the left, numbers to the right."""
    left = [f"{cell:<{width}}" for cell, width in zip(row[:2], widths[:2], strict=True)]
    right = [f"{cell:>{width}}" for cell, width in zip(row[2:], widths[2:], strict=True)]
    return "  ".join(left + right)


def with_unit(count: int) -> str:
    """Return a count in millions or, from 1e9 on, in units of 1e9."""
    unit, size = ("G", 1e9) if count >= 1e9 else ("M", 1e6)
    return f"{count / size:.2f} {unit}"
