"""The command ``natjax predict``."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from natjax.train.config.rules import require
from natjax.train.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table


def add_predict(commands: argparse._SubParsersAction) -> None:
    """Add the command to a parser."""
    parser = commands.add_parser(
        "predict",
        help="classes of image files, or of their pixels, or objects in them",
        description="Predict the class of image files, by the weights of a run, or by published or"
        " other weights of a model; by a run of segmentation, that of every pixel, as overlays with"
        " a legend; by a detector, of a run or by name, objects, as overlays with boxes, masks,"
        " names and scores. Unreadable ones are named (exit code 1).",
        epilog="natjax predict RUN IMAGE ..., or natjax predict IMAGE ... --model nat_tiny"
        " --weights imagenet1k, where the weights are a file, URL, hf://org/name or published.",
    )
    parser.add_argument(
        "paths", metavar="RUN|IMAGE", type=Path, nargs="+", help="run folder (first), image files"
    )
    parser.add_argument("--model", metavar="NAME", help="model; there is no RUN then")
    parser.add_argument(
        "--weights", help="of the model: file, URL, hf://, name (imagenet1k; of detectors, coco)"
    )
    parser.add_argument("--step", type=int, help="checkpoint to take (default: the newest)")
    parser.add_argument("--raw", action="store_true", help="of a run: the last, not the averaged")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder for overlays (default: RUN/overlays; without a run, overlays)",
    )
    parser.add_argument("--top", type=int, default=5, help="classes shown for each image (5)")
    parser.add_argument(
        "--score", type=float, default=0.3, help="of detectors: least score that is shown (0.3)"
    )
    parser.set_defaults(command=_predict)


def _predict(args: argparse.Namespace) -> int:
    require("--top", args.top, args.top >= 1, "at least 1")
    require("--score", args.score, 0 <= args.score <= 1, "in [0, 1]")
    if args.model is None:
        return _predict_by_run(args)
    if args.step is not None or args.raw:
        raise UserError("--step and --raw are for a run, and there is none with --model")
    import natjax

    if args.model in natjax.list_models(kind="detector"):
        return _predict_by_detector(args)
    from natjax.cli.predict import predict_photos

    weights = args.weights or "imagenet1k"
    try:
        return predict_photos(args.paths, model=args.model, weights=weights, top=args.top)
    except ValueError as error:
        raise UserError(str(error)) from error


def _predict_by_detector(args: argparse.Namespace) -> int:
    from natjax.train import console
    from natjax.train.tasks.detection.evaluate_weights import published_task
    from natjax.train.tasks.detection.predict import predict_files

    console.quiet_libraries()
    opened = published_task(args.weights or "coco", args.model)
    weights = opened.params, opened.statistics
    out = Path("overlays") if args.out is None else args.out
    return _tell(*predict_files(opened.task, weights, args.paths, out, args.score), args.paths)


def _predict_by_run(args: argparse.Namespace) -> int:
    run_folder, *images = args.paths
    if not images:
        raise UserError(f"predict takes a run and images, or images and --model; got {run_folder}")
    if args.weights is not None:
        raise UserError(f"--weights is for --model; a run has its own; got {args.weights}")
    from natjax.train.cli.runs import load_run
    from natjax.train.tasks.classification.task import Classification
    from natjax.train.tasks.detection.task import Detection
    from natjax.train.tasks.segmentation.task import Segmentation

    run = load_run(run_folder, step=args.step, kind="raw" if args.raw else "ema")
    weights = run.params, run.statistics
    out = run_folder / "overlays" if args.out is None else args.out
    if isinstance(run.task, Segmentation):
        from natjax.train.tasks.segmentation import predict as pixels

        return _tell(*pixels.predict_files(run.task, weights, images, out), images)
    if isinstance(run.task, Detection):
        from natjax.train.tasks.detection import predict as objects

        return _tell(*objects.predict_files(run.task, weights, images, out, args.score), images)
    if isinstance(run.task, Classification):
        from natjax.train.tasks.classification import predict as classes

        predictor = classes.predictor_of(run.task, weights)
        results, failures = classes.predict_files(predictor, images, args.top)
        return _tell(classes.prediction_table(results), failures, images)
    kind = type(run.task).__name__
    raise UserError(
        f"predict is for classification, segmentation and detection, got {kind}: {run_folder}"
    )


def _tell(shown: "Table", failures: Sequence[UserError], images: Sequence[Path]) -> int:
    """Show a table of the images that could be read, and what is wrong with the others."""
    from natjax.train import console

    if len(failures) < len(images):
        console.say(shown)
    for failure in failures:
        console.warn(str(failure))
    return 1 if failures else 0
