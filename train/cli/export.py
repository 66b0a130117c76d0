"""The command ``natjax export``: weights of a run as a file."""

import argparse
from pathlib import Path

from natjax.train.errors import UserError


def add_export(commands: argparse._SubParsersAction) -> None:
    """Add the command to a parser."""
    parser = commands.add_parser(
        "export",
        help="weights of a run, as a file",
        description="Write the weights of a run to OUT.safetensors, or to OUT.pth for PyTorch.",
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="run folder")
    parser.add_argument("out", metavar="OUT", type=Path, help="file to write")
    parser.add_argument("--step", type=int, help="checkpoint to take (default: the newest)")
    parser.add_argument("--raw", action="store_true", help="the last weights, not the averaged")
    parser.add_argument(
        "--to", choices=("natjax", "official", "hf"), help="names (official for .pth, else natjax)"
    )
    parser.set_defaults(command=_export)


def _export(args: argparse.Namespace) -> int:
    kind = "raw" if args.raw else "ema"
    export_run(args.run, args.out, step=args.step, kind=kind, naming=args.to)
    return 0


def export_run(
    path: Path,
    out: Path,
    *,
    step: int | None = None,
    kind: str = "ema",
    naming: str | None = None,
) -> None:
    """Write the weights of a checkpoint to a file that `natjax.load_weights` or PyTorch reads.

    Args:
      path: The run folder.
      out: ``.safetensors``, or ``.pth`` for PyTorch; replaced at once.
      step: Step of the checkpoint; None takes the newest sound one.
      kind: ``"ema"`` (averaged) or ``"raw"``.
      naming: ``"natjax"``, ``"official"`` or ``"hf"``; None is official for PyTorch's format and
        natjax for safetensors.

    Raises:
      UserError: there is no such run or checkpoint, or its network is not one of natjax.
      WeightsError: the file cannot be written so.
    """
    from flax import nnx

    from natjax.train import console
    from natjax.train.cli.runs import load_run
    from natjax.train.tasks.classification.task import Classification
    from natjax.train.tasks.detection.task import Detection
    from natjax.train.tasks.segmentation.task import Segmentation
    from natjax.weights.formats import check_target
    from natjax.weights.load import named_params
    from natjax.weights.save import default_naming, save_weights

    naming = naming or default_naming(out)
    target = check_target(out)
    run = load_run(path, step=step, kind=kind)
    task = run.task
    if not isinstance(task, Classification | Segmentation | Detection) or task.has_own_network:
        raise UserError(
            f"export is for classifiers, segmentors and detectors of natjax, which {path} is not"
        )
    model = nnx.eval_shape(task.model_builder())
    values = run.params | run.statistics
    for name, variable in named_params(model).items():
        variable.set_value(values[name])
    save_weights(model, target, naming=naming)
    count = len(values)
    console.say(f"{target}: {count} arrays with {naming} names, {kind} weights of step {run.step}")
