"""The table of the command ``natjax models``."""

from rich.table import Table

import natjax
from natjax.train.errors import UserError, did_you_mean


def model_table(pattern: str = "*") -> Table:
    """Return names, parameters and FLOPs of the models that match a shell pattern.

    A FLOP is a multiply-add, as in the papers, of one image of the size in the last column.

    Args:
      pattern: Such as ``"nat_*"``.

    Raises:
      UserError: no name matches; near names are suggested.
    """
    names = natjax.list_models(pattern)
    if not names:
        near = did_you_mean(pattern.strip("*"), natjax.list_models())
        raise UserError(f"no model matches {pattern!r}{near} (`natjax models` lists all)")
    table = Table(caption="FLOPs are multiply-adds of one image", caption_justify="left")
    table.add_column("model")
    table.add_column("kind")
    for heading in ("parameters", "FLOPs", "image"):
        table.add_column(heading, justify="right")
    for name in names:
        summary = natjax.model_summary(name)
        flops = with_unit(summary.flops)
        side = "x".join(map(str, summary.image_size))
        table.add_row(name, summary.kind, with_unit(summary.parameters), flops, side)
    return table


def with_unit(count: int) -> str:
    """Return a count in millions or, from 1e9 on, in units of 1e9."""
    unit, size = ("G", 1e9) if count >= 1e9 else ("M", 1e6)
    return f"{count / size:.2f} {unit}"
