"""The command ``natjax attention``: a picture of what a model looks at in a photo."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def add_attention(commands: argparse._SubParsersAction) -> None:
    """Add the command to a parser."""
    parser = commands.add_parser(
        "attention",
        help="a picture of where a model looks in a photo",
        description="Draw where the token of a pixel looks in a photo, level by level and head by"
        " head, its window, and which pixels matter to the class. The weights are a file, URL,"
        " hf://org/name or published.",
        epilog="natjax attention photo.jpg --model nat_tiny --weights imagenet1k --at 100,80",
    )
    parser.add_argument("image", metavar="IMAGE", type=Path)
    parser.add_argument("--model", metavar="NAME", required=True)
    parser.add_argument("--weights", default="imagenet1k", help="of the model (imagenet1k)")
    parser.add_argument(
        "--at",
        metavar="ROW,COLUMN",
        type=_pixel,
        help="pixel of the prepared photo (default: its middle)",
    )
    parser.add_argument("--label", type=int, help="class that pixels matter to (the likeliest)")
    parser.add_argument("--size", type=int, help="side of the prepared photo (the model's)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="picture (default: attention.png)")
    parser.set_defaults(command=_attention)


def _pixel(text: str) -> tuple[int, int]:
    row, comma, column = text.partition(",")
    if not comma or not (row.strip().isdigit() and column.strip().isdigit()):
        raise argparse.ArgumentTypeError(f"must be ROW,COLUMN such as 100,80; got {text}")
    return int(row), int(column)


def _attention(args: argparse.Namespace) -> int:
    import natjax
    from natjax.visualize.attention_figure import plot_attention

    out = Path("attention.png") if args.out is None else args.out
    try:
        model = natjax.create_model(args.model, weights=args.weights)
        image = natjax.preprocess(args.image, model, size=args.size)
        figure = plot_attention(model, image, args.at, label=args.label)
        figure.savefig(out, dpi=110)
    except ValueError as error:
        sys.stderr.write(f"natjax: {error}\n")
        return 2
    sys.stdout.write(f"{out}\n")
    return 0
