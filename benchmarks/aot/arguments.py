"""The command line that the tools of this folder share."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable
from typing import Protocol


def parser(
    module: str, description: str | None, workers: int | None = None
) -> argparse.ArgumentParser:
    """What says which cases to compile.

    Args:
      module: that is run.
      description: its docstring.
      workers: processes that compile; None for as many as there are cores.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--check", action="store_true", help="some, against the committed table")
    parser.add_argument("--only", nargs="+", default=[], metavar="PART", help="parts of names")
    parser.add_argument("--workers", type=int, default=workers or os.cpu_count() or 1)
    return parser


class _Case(Protocol):
    @property
    def key(self) -> str:
        """Its name, by which the table has it."""
        ...


def chosen[C: _Case](cases: Iterable[C], parts: Iterable[str]) -> list[C]:
    """The cases whose names have all parts."""
    parts = tuple(parts)
    return [case for case in cases if all(part in case.key for part in parts)]
