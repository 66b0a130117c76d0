"""The command ``natjax predict``."""

import argparse
from pathlib import Path

from natjax.train.errors import UserError


def add_predict(commands: argparse._SubParsersAction) -> None:
    """Add the command to a parser."""
    parser = commands.add_parser(
        "predict",
        help="classes of image files, or of their pixels",
        description="Predict the class of image files; by a run of segmentation, that of every"
        " pixel, as overlays with a legend. Unreadable ones are named (exit code 1).",
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="run folder")
    parser.add_argument("images", metavar="IMAGE", type=Path, nargs="+", help="image files")
    parser.add_argument("--step", type=int, help="checkpoint to take (default: the newest)")
    parser.add_argument("--raw", action="store_true", help="the last weights, not the averaged")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder for overlays (default: RUN/overlays)"
    )
    parser.add_argument("--top", type=int, default=5, help="classes shown for each image (5)")
    parser.set_defaults(command=_predict)


def _predict(args: argparse.Namespace) -> int:
    from natjax.train import console
    from natjax.train.cli.runs import load_run
    from natjax.train.tasks.classification.task import Classification
    from natjax.train.tasks.segmentation.task import Segmentation

    run = load_run(args.run, step=args.step, kind="raw" if args.raw else "ema")
    weights = run.params, run.statistics
    if isinstance(run.task, Segmentation):
        from natjax.train.tasks.segmentation import predict as pixels

        out = args.run / "overlays" if args.out is None else args.out
        shown, failures = pixels.predict_files(run.task, weights, args.images, out)
    elif isinstance(run.task, Classification):
        from natjax.train.tasks.classification import predict as images

        predictor = images.predictor_of(run.task, weights)
        results, failures = images.predict_files(predictor, args.images, args.top)
        shown = images.prediction_table(results)
    else:
        kind = type(run.task).__name__
        raise UserError(f"predict is for classification and segmentation, got {kind}: {args.run}")
    if len(failures) < len(args.images):
        console.say(shown)
    for failure in failures:
        console.warn(str(failure))
    return 1 if failures else 0
