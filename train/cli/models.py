"""The command ``natjax models``: a table of all models."""

import argparse
from typing import TYPE_CHECKING

from natjax.train.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from rich.table import Table


def add_models(commands: argparse._SubParsersAction) -> None:
    """Add the command to a parser."""
    parser = commands.add_parser(
        "models", help="names, parameters and FLOPs", description="List models."
    )
    parser.add_argument("pattern", metavar="PATTERN", nargs="?", default="*", help="such as nat_*")
    parser.set_defaults(command=_models)


def _models(args: argparse.Namespace) -> int:
    from natjax.train import console

    console.say(model_table(args.pattern))
    return 0


def model_table(pattern: str = "*") -> "Table":
    """Return names, parameters and FLOPs of the models that match a shell pattern.

    A FLOP is a multiply-add, as in the papers, of one image of the size in the last column.

    Args:
      pattern: Such as ``"nat_*"``.

    Raises:
      UserError: no name matches; near names are suggested.
    """
    from rich import box
    from rich.table import Table

    import natjax
    from natjax.train.engine.summary import with_unit

    names = natjax.list_models(pattern)
    if not names:
        near = did_you_mean(pattern.strip("*"), natjax.list_models())
        raise UserError(f"no model matches {pattern!r}{near} (`natjax models` lists all)")
    # Few lines, so that the longest name fits into 80 columns.
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        caption="FLOPs are multiply-adds of one image",
        caption_justify="left",
    )
    table.add_column("model", no_wrap=True)
    table.add_column("kind")
    for heading in ("parameters", "FLOPs", "image"):
        table.add_column(heading, justify="right")
    for name in names:
        summary = natjax.model_summary(name)
        flops = with_unit(summary.flops)
        side = "x".join(map(str, summary.image_size))
        table.add_row(name, summary.kind, with_unit(summary.parameters), flops, side)
    return table
