"""The command ``natjax predict``."""

import argparse
from pathlib import Path

from natjax.train.errors import UserError


def add_predict(commands: argparse._SubParsersAction) -> None:
    """Add the command to a parser."""
    parser = commands.add_parser(
        "predict",
        help="classes of image files",
        description="Predict the class of image files. Unreadable ones are named (exit code 1).",
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="run folder")
    parser.add_argument("images", metavar="IMAGE", type=Path, nargs="+", help="image files")
    parser.add_argument("--step", type=int, help="checkpoint to take (default: the newest)")
    parser.add_argument("--weights", choices=("ema", "raw"), default="ema", help="(default: ema)")
    parser.add_argument("--top", type=int, default=5, help="classes shown for each image (5)")
    parser.set_defaults(command=_predict)


def _predict(args: argparse.Namespace) -> int:
    from natjax.train import console
    from natjax.train.cli.runs import load_run
    from natjax.train.tasks.classification.predict import (
        predict_files,
        prediction_table,
        predictor_of,
    )
    from natjax.train.tasks.classification.task import Classification

    run = load_run(args.run, step=args.step, weights=args.weights)
    if not isinstance(run.task, Classification):
        raise UserError(f"predict is for classifiers, got a {type(run.task).__name__}: {args.run}")
    predictor = predictor_of(run.task, (run.params, run.statistics))
    results, failures = predict_files(predictor, args.images, args.top)
    if results:
        console.say(prediction_table(results))
    for failure in failures:
        console.warn(str(failure))
    return 1 if failures else 0
