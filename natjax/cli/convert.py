"""The command ``natjax convert``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def add_convert(commands: argparse._SubParsersAction) -> None:
    """Add the command to a parser."""
    parser = commands.add_parser(
        "convert",
        help="weights into another format",
        description="Convert weights between PyTorch files, Hugging Face and natjax.",
        epilog="SRC is a file, a URL, hf://org/name[@revision], or published weights such as"
        " imagenet1k with --model. DST ends in .safetensors, or in .pth for PyTorch.",
    )
    parser.add_argument("source", metavar="SRC", help="weights to read")
    parser.add_argument("target", metavar="DST", help="file to write")
    parser.add_argument("--model", metavar="NAME", help="model, where the weights do not tell")
    parser.add_argument("--ema", action="store_true", help="averaged weights of a checkpoint")
    parser.add_argument(
        "--to",
        choices=("natjax", "official", "hf"),
        help="names to write (default: official for .pth, else natjax)",
    )
    parser.add_argument("--drop-head", action="store_true", help="leave the classifier out")
    parser.add_argument(
        "--resize-rpb", action="store_true", help="fit position biases to the model's window"
    )
    parser.add_argument(
        "--card",
        action="store_true",
        help="write DST.md beside it: provenance, licence, published accuracies",
    )
    parser.set_defaults(command=_convert)


def _convert(args: argparse.Namespace) -> int:
    from natjax.weights.save import convert_weights

    done = convert_weights(
        args.source,
        args.target,
        model=args.model,
        naming=args.to,
        ema=args.ema,
        drop_head=args.drop_head,
        resize_rpb=args.resize_rpb,
    )
    model = done.model or "a model of its own config"
    sys.stdout.write(
        f"{done.read.table()}\n{done.read}\n"
        f"{done.path}: {done.arrays} arrays of {model} with {done.naming} names\n"
    )
    if args.card:
        from natjax.weights.card import model_card

        path = Path(f"{done.path}.md")
        path.write_text(model_card(done, args.source), encoding="utf-8")
        sys.stdout.write(f"{path}: its card\n")
    return 0
