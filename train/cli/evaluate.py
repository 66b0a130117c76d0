"""The command ``natjax eval``: scores of a finished or interrupted run, or of weights."""

import argparse
import dataclasses
from collections.abc import Iterable, Iterator, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any

from natjax.train.config.rules import require
from natjax.train.config.settings import DistributedConfig
from natjax.train.errors import UserError

if TYPE_CHECKING:
    from jax.sharding import Mesh
    from rich.table import Table

    from natjax.train.engine.evaluate import Weights
    from natjax.train.engine.task import Scores, Task

_BATCH_SIZE = 64
_ROWS = {"raw": "last", "ema": "averaged"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class How:
    """How an evaluation is done, whatever is evaluated.

    Attributes:
      devices: Devices to split each batch over; None takes all there are.
      batch_size: Examples at once, over all devices and processes; None takes that of the run, or
        64, and as many more as make a multiple of the devices.
      data: Settings of the data to replace: ``dir``, ``threads``, ``workers``.
    """

    devices: int | None = None
    batch_size: int | None = None
    data: dict[str, Any] = dataclasses.field(default_factory=dict)

    def batch_on(self, mesh: "Mesh", default: int) -> int:
        """Return the examples at once.

        Args:
          mesh: The devices.
          default: What it is about where nothing is said.

        Raises:
          UserError: what is said is no multiple of the devices.
        """
        size = self.batch_size
        if size is None:
            return -(-default // mesh.size) * mesh.size
        rule = f"a positive multiple of the {mesh.size} devices"
        require("--batch-size", size, size > 0 and size % mesh.size == 0, rule)
        return size


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What was found.

    Attributes:
      task: The task.
      title: What was evaluated.
      results: Scores by ``"raw"`` and, where an average is kept, ``"ema"``.
      notes: Lines to show below.
    """

    task: "Task[Any]"
    title: str
    results: "dict[str, Scores]"
    notes: list[str] = dataclasses.field(default_factory=list)


def add_eval(commands: argparse._SubParsersAction) -> None:
    """Add the command to a parser."""
    parser = commands.add_parser(
        "eval",
        help="scores of a run, or of weights",
        description="Evaluate a run on all held-out examples, or weights on the images of"
        " ImageNet's validation set, prepared as published. With code 1 where some cannot be read.",
        epilog="natjax eval RUN, or natjax eval --weights FILE --data.dir FOLDER, where the folder"
        " holds a folder of images for each class (with --model of a segmentor: images and label"
        " maps; of a detector: COCO, or data in its format), or what TFDS has prepared. Several"
        " processes share the work as in training, each started with the same command.",
    )
    parser.add_argument("run", metavar="RUN", type=Path, nargs="?", help="run folder")
    parser.add_argument("--weights", help="file, URL, hf://org/name, or imagenet1k, ade20k, coco")
    parser.add_argument("--model", metavar="NAME", help="model of the weights")
    parser.add_argument(
        "--multi-scale",
        action="store_true",
        help="weights of segmentors: average over the published scales and mirror images",
    )
    parser.add_argument("--step", type=int, help="checkpoint to take (default: the newest)")
    parser.add_argument("--task", type=Path, metavar="FILE.py", help="file of the run's own task")
    parser.add_argument(
        "--batch-size", type=int, help=f"examples at once (the run's; {_BATCH_SIZE} for weights)"
    )
    parser.add_argument("--devices", type=int, help="devices to share the work (all; of a CPU, 1)")
    parser.add_argument("--data.dir", type=Path, help="original files of the data")
    parser.add_argument("--data.threads", type=int, help="threads that decode")
    parser.add_argument("--data.workers", type=int, help="processes that decode")
    for field in dataclasses.fields(DistributedConfig):
        kind = str if field.name == "coordinator" else int
        parser.add_argument(f"--distributed.{field.name}", type=kind, help="as for natjax train")
    parser.set_defaults(command=_eval)


def _eval(args: argparse.Namespace) -> int:
    if (args.run is None) == (args.weights is None):
        raise UserError("eval takes either RUN or --weights (see `natjax eval --help`)")
    from natjax.train import console
    from natjax.train.cluster import processes
    from natjax.train.cluster.failure import end_together
    from natjax.train.engine.evaluate import best_of

    console.quiet_libraries()
    how = How(devices=args.devices, batch_size=args.batch_size, data=_given(args, "data"))
    processes.start(DistributedConfig(**_given(args, "distributed")))
    with end_together():
        if args.weights is None:
            found = evaluate_run(args.run, how, step=args.step, file=args.task)
        else:
            found = evaluate_weights(
                args.weights, how, model=args.model, multi_scale=args.multi_scale
            )
        processes.wait("end of the evaluation")
    console.say(evaluation_table(found))
    details = found.task.details(best_of(found.results))
    if details is not None:
        console.say(details)
    for note in found.notes:
        console.say(note)
    return _tell_unread(found)


def _given(args: argparse.Namespace, section: str) -> dict[str, Any]:
    """The settings of a section that are given, such as ``--data.dir``."""
    found = {n: x for n, x in vars(args).items() if n.startswith(f"{section}.") and x is not None}
    return {name.partition(".")[2]: value for name, value in found.items()}


def _tell_unread(found: Evaluation) -> int:
    from natjax.train import console

    unread = found.task.unread(next(iter(found.results.values())))
    if unread:
        console.warn(f"{unread:,} {found.task.unit} could not be read and do not count")
    return 1 if unread else 0


def evaluate_run(
    path: Path, how: How | None = None, *, step: int | None = None, file: Path | None = None
) -> Evaluation:
    """Evaluate the weights of a run over all held-out examples.

    What the task draws of the averaged weights' scores is written into the run folder.

    Args:
      path: The run folder.
      how: Devices, batch, data.
      step: Step of the checkpoint; None takes the newest sound one.
      file: File that defines the task, for tasks of files.

    Raises:
      UserError: there is no such run or checkpoint, or a number is wrong.
    """
    from natjax.train.checkpoint.run_folder import RunFolder
    from natjax.train.cli.runs import restore_weights
    from natjax.train.config.serialization import override
    from natjax.train.config.settings import MeshConfig
    from natjax.train.engine.sharding import replicated
    from natjax.train.tasks.registry import read_run

    how = How() if how is None else how
    definition, config = read_run(RunFolder(path), file)
    mesh = _make_mesh(how)
    config = dataclasses.replace(
        config,
        mesh=MeshConfig(data=mesh.size),
        batch_size=how.batch_on(mesh, config.batch_size),
        accumulate=1,
    )
    reading = {name: str(x) if isinstance(x, Path) else x for name, x in how.data.items()}
    task = definition.build(override(config, {"data": reading}) if reading else config)
    kinds = ("raw",) if config.ema_decay is None else ("raw", "ema")
    taken, weights = restore_weights(path, task, replicated(mesh), kinds=kinds, step=step)
    results = _evaluate(task, mesh, weights)
    _write_pictures(task, path, results)
    return Evaluation(task=task, title=f"step {taken}", results=results)


def _write_pictures(task: "Task[Any]", path: Path, results: "dict[str, Scores]") -> None:
    from natjax.train import console
    from natjax.train.cluster import processes
    from natjax.train.engine.evaluate import best_of

    if processes.index() != 0:
        return
    try:
        task.pictures(path, best_of(results), None)
    except OSError as error:  # such as a folder that may only be read: the numbers are there
        console.warn(f"cannot write pictures into {path}: {error}")


def evaluate_weights(
    weights: str,
    how: How | None = None,
    *,
    model: str | None = None,
    multi_scale: bool = False,
) -> Evaluation:
    """Evaluate weights over all images of a folder, prepared as published for the model.

    Args:
      weights: As for `natjax.load_weights`.
      how: Devices, batch, data; ``data["dir"]`` is the folder.
      model: Name of the model; None where the weights tell, which those of segmentors and
        detectors do not.
      multi_scale: Of a segmentor, average over scales and mirror images.

    Raises:
      UserError: a folder or a number is wrong.
      WeightsError: the weights cannot be found or read, or may be of several models.
    """
    import jax

    import natjax
    from natjax.train.config.settings import MeshConfig
    from natjax.train.engine.sharding import replicated

    how = How() if how is None else how
    mesh, reading = _make_mesh(how), dict(how.data)
    folder = reading.pop("dir", None)
    settings = {
        "model": model,
        "data": reading,
        "mesh": MeshConfig(data=mesh.size),
        "batch_size": how.batch_on(mesh, _BATCH_SIZE),
    }
    if model in natjax.list_models(kind="segmentor"):
        from natjax.train.tasks.segmentation import evaluate_weights as of_kind

        settings["multi_scale"] = multi_scale
    else:
        require("--multi-scale", multi_scale, not multi_scale, "left out but for segmentors")
        if model in natjax.list_models(kind="detector"):
            from natjax.train.tasks.detection import evaluate_weights as of_kind
        else:
            from natjax.train.tasks.classification import evaluate_weights as of_kind
    opened = of_kind.open_weights_task(weights, folder, **settings)
    values = jax.device_put((dict(opened.params), dict(opened.statistics)), replicated(mesh))
    results = _evaluate(opened.task, mesh, {"raw": values})
    return Evaluation(task=opened.task, title=opened.model, results=results, notes=opened.notes())


def _make_mesh(how: How) -> "Mesh":
    import jax

    from natjax.train.config.settings import MeshConfig
    from natjax.train.engine.sharding import make_mesh, request_devices

    devices = how.devices
    require("--devices", devices, devices is None or devices > 0, "positive")
    request_devices(MeshConfig(data=devices))
    count = jax.device_count()
    fits = devices is None or devices <= count
    require("--devices", devices, fits, f"at most the {count} there are")
    return make_mesh(MeshConfig(data=devices))


def _evaluate(task: "Task[Any]", mesh: "Mesh", weights: "Weights") -> "dict[str, Scores]":
    """Evaluate weights that every device holds whole."""
    from natjax.train.cluster import processes
    from natjax.train.engine.compile import compile_evaluation
    from natjax.train.engine.evaluate import evaluate
    from natjax.train.engine.task import NoExamplesError

    batches = _shown(task.eval_batches(processes.this_host()))
    try:
        return evaluate(task, compile_evaluation(task, mesh), weights, batches)
    except NoExamplesError as error:
        raise UserError(f"none of the {task.unit} could be read") from error


def _shown[Batch](batches: Iterable[Batch]) -> Iterator[Batch]:
    """Show on a terminal how far they are."""
    from rich.progress import track

    from natjax.train import console
    from natjax.train.engine.evaluate import closed

    with closed(iter(batches)) as made:
        yield from track(
            made,
            "Evaluating",
            total=len(batches) if isinstance(batches, Sized) else None,
            console=console.console(),
            disable=not console.is_terminal(),
            transient=True,
        )


def evaluation_table(found: Evaluation) -> "Table":
    """Return the results as a table."""
    from rich.table import Table

    task, scores = found.task, next(iter(found.results.values())).values
    shown = {name: x for name, x in task.quantities.items() if name in scores}
    count = scores[task.unit]
    table = Table(title=f"{found.title}, {count:,} held-out {task.unit}", title_justify="left")
    table.add_column("weights")
    for quantity in shown.values():
        table.add_column(quantity.title, justify="right")
    for weights, result in found.results.items():
        numbers = (f"{result.values[name]:{x.format}}" for name, x in shown.items())
        table.add_row(_ROWS[weights] if len(found.results) > 1 else "", *numbers)
    return table
