"""The command ``natjax eval``: scores of a finished or interrupted run, or of weights."""

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from natjax.train.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

    from natjax.train.engine.task import Scores, Task


def add_eval(commands: argparse._SubParsersAction) -> None:
    """Add the command to a parser."""
    parser = commands.add_parser(
        "eval",
        help="scores of a run, or of weights",
        description="Evaluate a run on all held-out examples, or weights on the images of"
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
    parser.add_argument("--task", type=Path, metavar="FILE.py", help="file of the run's own task")
    parser.set_defaults(command=_eval)


def _eval(args: argparse.Namespace) -> int:
    if (args.run is None) == (args.weights is None):
        raise UserError("eval takes either RUN or --weights (see `natjax eval --help`)")
    if args.weights is not None:
        return _eval_weights(args)
    from natjax.train import console

    found = evaluate_run(
        args.run, step=args.step, devices=args.devices, data_dir=args.data_dir, file=args.task
    )
    console.say(evaluation_table(*found))
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


def evaluate_run(
    path: Path,
    *,
    step: int | None = None,
    devices: int = 1,
    data_dir: Path | None = None,
    file: Path | None = None,
) -> "tuple[Task[Any], int, dict[str, Scores]]":
    """Evaluate the weights of a run over all held-out examples.

    What the task draws of the averaged weights' scores is written into the run folder.

    Args:
      path: The run folder.
      step: Step of the checkpoint; None takes the newest sound one.
      devices: Devices to split each batch over.
      data_dir: Folder with the original files, where the data set is not prepared here.
      file: File that defines the task, for tasks of files.

    Returns:
      The task, the step, and the scores by ``"raw"`` and, where an average is kept, ``"ema"``.

    Raises:
      UserError: there is no such run or checkpoint.
    """
    from natjax.train import console
    from natjax.train.checkpoint.checkpointer import restore
    from natjax.train.checkpoint.run_folder import RunFolder
    from natjax.train.cli.runs import no_checkpoint
    from natjax.train.config.serialization import override
    from natjax.train.config.settings import MeshConfig
    from natjax.train.engine.evaluate import best_of, evaluate
    from natjax.train.engine.state import state_of
    from natjax.train.engine.trainer import build_trainer
    from natjax.train.tasks.registry import read_run

    folder = RunFolder(path)
    definition, config = read_run(folder, file)
    config = dataclasses.replace(config, mesh=MeshConfig(data=devices))
    if data_dir is not None:
        config = override(config, {"data": {"dir": str(data_dir)}})
    trainer = build_trainer(definition.build(config))
    needed = ("params", "statistics", "ema")
    items = trainer.compiled.target.items()
    restored = restore(
        folder.checkpoints, {name: items[name] for name in needed if name in items}, step=step
    )
    if restored is None:
        raise no_checkpoint(path)
    weights = state_of({"step": {"step": None}, "opt": None, **restored.items}).weights()
    batches = trainer.task.eval_batches(trainer.host)
    results = evaluate(trainer.task, trainer.compiled, weights, batches)
    try:
        trainer.task.pictures(path, best_of(results), None)
    except OSError as error:  # such as a folder that may only be read: the numbers are there
        console.warn(f"cannot write pictures into {path}: {error}")
    return trainer.task, restored.step, results


def evaluation_table(task: "Task[Any]", step: int, results: "dict[str, Scores]") -> "Table":
    """Return the results as a table; `step` names the checkpoint."""
    from rich.table import Table

    scores = results["raw"].values
    shown = {name: x for name, x in task.quantities.items() if name in scores}
    count = scores[task.unit]
    table = Table(title=f"step {step}, {count:,} held-out {task.unit}", title_justify="left")
    table.add_column("weights")
    for quantity in shown.values():
        table.add_column(quantity.title, justify="right")
    for weights, found in results.items():
        numbers = (f"{found.values[name]:{x.format}}" for name, x in shown.items())
        table.add_row({"raw": "last", "ema": "averaged"}[weights], *numbers)
    return table
