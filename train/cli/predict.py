"""The command ``natjax predict``."""

import argparse
from pathlib import Path

from natjax.train.errors import UserError


def add_predict(commands: argparse._SubParsersAction) -> None:
    """Add the command to a parser."""
    parser = commands.add_parser(
        "predict",
        help="classes of image files, or of their pixels",
        description="Predict the class of image files, by the weights of a run, or by published or"
        " other weights of a model; by a run of segmentation, that of every pixel, as overlays with"
        " a legend. Unreadable ones are named (exit code 1).",
        epilog="natjax predict RUN IMAGE ..., or natjax predict IMAGE ... --model nat_tiny"
        " --weights imagenet1k, where the weights are a file, URL, hf://org/name or published.",
    )
    parser.add_argument(
        "paths", metavar="RUN|IMAGE", type=Path, nargs="+", help="run folder (first), image files"
    )
    parser.add_argument("--model", metavar="NAME", help="model; there is no RUN then")
    parser.add_argument("--weights", help="of the model: file, URL, hf://, name (imagenet1k)")
    parser.add_argument("--step", type=int, help="checkpoint to take (default: the newest)")
    parser.add_argument("--raw", action="store_true", help="of a run: the last, not the averaged")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder for overlays (default: RUN/overlays)"
    )
    parser.add_argument("--top", type=int, default=5, help="classes shown for each image (5)")
    parser.set_defaults(command=_predict)


def _predict(args: argparse.Namespace) -> int:
    if args.top < 1:
        raise UserError(f"--top must be at least 1, got {args.top}")
    if args.model is None:
        return _predict_by_run(args)
    if args.step is not None or args.raw:
        raise UserError("--step and --raw are for a run, and there is none with --model")
    from natjax.cli.predict import predict_photos

    weights = args.weights or "imagenet1k"
    try:
        return predict_photos(args.paths, model=args.model, weights=weights, top=args.top)
    except ValueError as error:
        raise UserError(str(error)) from error


def _predict_by_run(args: argparse.Namespace) -> int:
    run_folder, *images = args.paths
    if not images:
        raise UserError(f"predict takes a run and images, or images and --model; got {run_folder}")
    if args.weights is not None:
        raise UserError(f"--weights is for --model; a run has its own; got {args.weights}")
    from natjax.train import console
    from natjax.train.cli.runs import load_run
    from natjax.train.tasks.classification.task import Classification
    from natjax.train.tasks.segmentation.task import Segmentation

    run = load_run(run_folder, step=args.step, kind="raw" if args.raw else "ema")
    weights = run.params, run.statistics
    if isinstance(run.task, Segmentation):
        from natjax.train.tasks.segmentation import predict as pixels

        out = run_folder / "overlays" if args.out is None else args.out
        shown, failures = pixels.predict_files(run.task, weights, images, out)
    elif isinstance(run.task, Classification):
        from natjax.train.tasks.classification import predict as classes

        predictor = classes.predictor_of(run.task, weights)
        results, failures = classes.predict_files(predictor, images, args.top)
        shown = classes.prediction_table(results)
    else:
        kind = type(run.task).__name__
        raise UserError(f"predict is for classification and segmentation, got {kind}: {run_folder}")
    if len(failures) < len(images):
        console.say(shown)
    for failure in failures:
        console.warn(str(failure))
    return 1 if failures else 0
