"""The command ``natjax export``: weights of a run as a file, or a model as a program."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from natjax.train.errors import UserError

if TYPE_CHECKING:
    from flax import nnx

_PROGRAM = ".stablehlo"


def add_export(commands: argparse._SubParsersAction) -> None:
    """Add the command to a parser."""
    parser = commands.add_parser(
        "export",
        help="weights of a run, as a file; a model, as a program",
        description="Write the weights of a run to OUT.safetensors, or to OUT.pth for PyTorch; or a"
        " run, or a model by its name, to OUT.stablehlo: a program with its weights, from"
        " normalised images to results, which JAX runs without natjax.",
        epilog="natjax export runs/digits digits.safetensors; natjax export nat_tiny nat.stablehlo"
        " --weights imagenet1k --batch b --image 224",
    )
    parser.add_argument("source", metavar="RUN|MODEL", help="run folder, or name of a model")
    parser.add_argument("out", metavar="OUT", type=Path, help="file to write")
    parser.add_argument("--step", type=int, help="checkpoint to take (default: the newest)")
    parser.add_argument("--raw", action="store_true", help="the last weights, not the averaged")
    parser.add_argument(
        "--to", choices=("natjax", "official", "hf"), help="names (official for .pth, else natjax)"
    )
    program = parser.add_argument_group("programs (.stablehlo)")
    program.add_argument("--weights", help="of a MODEL: file, URL, hf://, name (imagenet1k)")
    program.add_argument("--batch", default="b", help="images: a number, or a name for any (b)")
    program.add_argument("--image", metavar="SIZE", help="224 or 800x1216 (the model's own)")
    program.add_argument(
        "--platforms", default="cpu,cuda,tpu", help="where it is to run (cpu,cuda,tpu)"
    )
    parser.set_defaults(command=_export)


def _export(args: argparse.Namespace) -> int:
    kind = "raw" if args.raw else "ema"
    run = Path(args.source)
    if args.out.suffix != _PROGRAM:
        if args.weights is not None:
            raise UserError(f"--weights is for programs, OUT{_PROGRAM}; got {args.out}")
        export_run(run, args.out, step=args.step, kind=kind, naming=args.to)
        return 0
    if run.is_dir():
        if args.weights is not None:
            raise UserError(f"--weights is for a MODEL; a run has its own; got {args.weights}")
        model = model_of_run(run, step=args.step, kind=kind).model
    else:
        model = _model_by_name(args.source, args.weights)
    _write_program(model, args)
    return 0


def _model_by_name(name: str, weights: str | None) -> "nnx.Module":
    import natjax
    from natjax.registry import kind_of

    try:
        kind = kind_of(name)
        create = {
            "classifier": natjax.create_model,
            "segmentor": natjax.create_segmentor,
            "detector": natjax.create_detector,
        }[kind]
        default = {"classifier": "imagenet1k", "segmentor": "ade20k", "detector": "coco"}[kind]
        return create(name, weights=weights or default)
    except ValueError as error:
        raise UserError(str(error)) from error


def _write_program(model: "nnx.Module", args: argparse.Namespace) -> None:
    import natjax
    from natjax.train import console
    from natjax.train.files import write_whole_bytes

    batch = int(args.batch) if args.batch.isdigit() else args.batch
    size = _image_size(args.image, model)
    try:
        data = natjax.export_program(model, size, batch=batch, platforms=args.platforms.split(","))
    except ValueError as error:
        raise UserError(str(error)) from error
    write_whole_bytes(args.out, data)
    shown = "x".join(map(str, size))
    console.say(
        f"{args.out}: a program for images of {shown}, batch {batch}, on {args.platforms};"
        " jax.export.deserialize reads it"
    )


def _image_size(text: str | None, model: "nnx.Module") -> tuple[int, int]:
    if text is None:
        config = getattr(model.config, "backbone", model.config)
        return (config.input_size,) * 2
    sides = text.split("x")
    if len(sides) > 2 or not all(side.isdigit() for side in sides):
        raise UserError(f"--image must be such as 224 or 800x1216, got {text}")
    return int(sides[0]), int(sides[-1])


class RunModel(NamedTuple):
    """A model of a run.

    Attributes:
      model: With its weights.
      step: Of the checkpoint.
      arrays: How many arrays were taken.
    """

    model: "nnx.Module"
    step: int
    arrays: int


def model_of_run(path: Path, *, step: int | None = None, kind: str = "ema") -> RunModel:
    """Return the network of a run as a model of natjax.

    Args:
      path: The run folder.
      step: Step of the checkpoint; None takes the newest sound one.
      kind: ``"ema"`` (averaged) or ``"raw"``.

    Raises:
      UserError: there is no such run or checkpoint, or its network is not one of natjax.
    """
    from flax import nnx

    from natjax.train.cli.runs import load_run
    from natjax.train.tasks.classification.task import Classification
    from natjax.train.tasks.detection.task import Detection
    from natjax.train.tasks.segmentation.task import Segmentation
    from natjax.weights.load import named_params

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
    return RunModel(model, run.step, len(values))


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
    from natjax.train import console
    from natjax.weights.formats import check_target
    from natjax.weights.save import default_naming, save_weights

    naming = naming or default_naming(out)
    target = check_target(out)
    found = model_of_run(path, step=step, kind=kind)
    save_weights(found.model, target, naming=naming)
    console.say(
        f"{target}: {found.arrays} arrays with {naming} names, {kind} weights of step {found.step}"
    )
