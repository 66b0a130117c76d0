"""The command ``natjax``: train, eval, predict, export, convert, data, models, tune.

Exit codes: 0 done, 1 something failed on the way, 2 wrong use or a full disk, 130 interrupted, 143
stopped by SIGTERM. Each command imports what it needs when it runs, so that help comes at once.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from natjax.cli.convert import add_convert
from natjax.cli.tune import add_tune
from natjax.train.cli.data import add_data
from natjax.train.cluster import processes
from natjax.train.errors import Stopped, UserError, explain

_EXIT_CODES = """\
exit codes:
  0    all steps are done
  1    training failed: the loss is not finite, or data workers die
  2    wrong use, wrong data, or a disk that is full or read-only
  130  Ctrl-C: after the step, with all saved; a second one stops at once
  143  SIGTERM (preemption): after the step, with all saved
After 130 and 143 the same command continues, to the bit on the same devices."""
_CONVERT_MODULES = {"safetensors"}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see `{self.prog} --help`)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
      argv: Arguments without the program's name; by default those of the process.

    Returns:
      The exit code.
    """
    try:
        args = _parser().parse_args(argv)
        return args.command(args)
    except SystemExit as stop:  # help, or a flag that tyro has explained
        return stop.code if isinstance(stop.code, int) else 2
    except KeyboardInterrupt:
        return 130
    except ModuleNotFoundError as error:
        return _missing_module(error)
    except Exception as error:
        explained = explain(error)
        if explained is None:
            raise
        return _fail(*explained)


def _fail(message: str, code: int) -> int:
    sys.stderr.write(f"natjax: {processes.label()}{message}\n")
    return code


def _missing_module(error: ModuleNotFoundError) -> int:
    if (error.name or "").startswith("natjax"):
        raise error
    extra = "convert" if error.name in _CONVERT_MODULES else "train"
    return _fail(f"{error.name} is missing; install it with: pip install 'natjax[{extra}]'", 2)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="natjax", description="Neighborhood Attention Transformers in JAX.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_train(commands)
    _add_eval(commands)
    _add_predict(commands)
    _add_export(commands)
    add_convert(commands)
    add_data(commands)
    _add_models(commands)
    add_tune(commands)
    return parser


def _add_train(commands: argparse._SubParsersAction) -> None:
    from natjax.train.tasks.classification.presets import summaries

    texts = summaries()
    width = max(map(len, texts))
    parser = commands.add_parser(
        "train",
        help="train a model; run it again to continue",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Train a model by a preset. The same command again continues where it stopped.",
        epilog="presets:\n"
        + "\n".join(f"  {name:<{width}}  {text}" for name, text in texts.items())
        + "\n\n`natjax train PRESET --help` lists every setting.\n\n"
        + _EXIT_CODES,
    )
    parser.add_argument("preset", metavar="PRESET", help="name of a preset")
    parser.add_argument(
        "settings", nargs=argparse.REMAINDER, help="such as --run DIR --epochs 5 --mesh.data 4"
    )
    parser.set_defaults(command=_train)


def _add_eval(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "eval",
        help="accuracy of a run, or of weights",
        description="Evaluate a run on all held-out images, or weights on the images of"
        " ImageNet's validation set, prepared as published.",
        epilog="natjax eval RUN, or natjax eval --weights FILE --data.dir FOLDER, where the folder"
        " holds a folder of images for each class, or what TFDS has prepared.",
    )
    parser.add_argument("run", metavar="RUN", type=Path, nargs="?", help="run folder")
    parser.add_argument("--weights", help="file, URL, hf://org/name, or imagenet1k")
    parser.add_argument("--model", metavar="NAME", help="model of the weights")
    parser.add_argument("--batch-size", type=int, default=64, help="images at once (64)")
    parser.add_argument("--step", type=int, help="checkpoint to take (default: the newest)")
    parser.add_argument("--devices", type=int, default=1, help="devices to share the work (1)")
    parser.add_argument("--data.dir", dest="data_dir", type=Path, help="original files of the data")
    parser.set_defaults(command=_eval)


def _add_export(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "export",
        help="weights of a run, as a file",
        description="Write the weights of a run to OUT.safetensors, or to OUT.pth for PyTorch.",
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="run folder")
    parser.add_argument("out", metavar="OUT", type=Path, help="file to write")
    parser.add_argument("--step", type=int, help="checkpoint to take (default: the newest)")
    parser.add_argument("--weights", choices=("ema", "raw"), default="ema", help="(default: ema)")
    parser.add_argument(
        "--to", choices=("natjax", "official", "hf"), help="names (official for .pth, else natjax)"
    )
    parser.set_defaults(command=_export)


def _add_predict(commands: argparse._SubParsersAction) -> None:
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


def _add_models(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "models", help="names, parameters and FLOPs", description="List models."
    )
    parser.add_argument("pattern", metavar="PATTERN", nargs="?", default="*", help="such as nat_*")
    parser.set_defaults(command=_models)


def _train(args: argparse.Namespace) -> int:
    from natjax.train.cli.overrides import parse_train

    config = parse_train(args.preset, args.settings)
    run = config.run or Path("runs") / args.preset
    from natjax.train.engine.loop import train

    try:
        train(config, run)
    except Stopped as stop:
        return _fail(f"{stop}; the same command continues {run}", 128 + stop.signal)
    except KeyboardInterrupt:
        return _fail(f"interrupted; the same command continues {run} from its last checkpoint", 130)
    return 0


def _eval(args: argparse.Namespace) -> int:
    if (args.run is None) == (args.weights is None):
        raise UserError("eval takes either RUN or --weights (see `natjax eval --help`)")
    if args.weights is not None:
        return _eval_weights(args)
    from natjax.train.cli.evaluate_run import evaluate_run, show_evaluation

    show_evaluation(
        *evaluate_run(args.run, step=args.step, devices=args.devices, data_dir=args.data_dir)
    )
    return 0


def _eval_weights(args: argparse.Namespace) -> int:
    from natjax.train.tasks.classification.evaluate_weights import (
        evaluate_weights,
        show_weights_evaluation,
    )

    result = evaluate_weights(
        args.weights,
        args.data_dir,
        model=args.model,
        batch_size=args.batch_size,
        devices=args.devices,
    )
    show_weights_evaluation(result)
    return 1 if result.failures else 0


def _export(args: argparse.Namespace) -> int:
    from natjax.train.cli.export import export_run

    export_run(args.run, args.out, step=args.step, weights=args.weights, naming=args.to)
    return 0


def _predict(args: argparse.Namespace) -> int:
    from natjax.train import console
    from natjax.train.tasks.classification.predict import (
        load_predictor,
        predict_files,
        prediction_table,
    )

    predictor = load_predictor(args.run, step=args.step, weights=args.weights)
    results, failures = predict_files(predictor, args.images, args.top)
    if results:
        console.say(prediction_table(results))
    for failure in failures:
        console.warn(str(failure))
    return 1 if failures else 0


def _models(args: argparse.Namespace) -> int:
    from natjax.train import console
    from natjax.train.cli.models import model_table

    console.say(model_table(args.pattern))
    return 0
