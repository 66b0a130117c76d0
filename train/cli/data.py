"""The commands ``natjax data prepare`` and ``natjax data bench``."""

import argparse
import dataclasses
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from natjax.train.config.settings import DataConfig
from natjax.train.errors import UserError
from natjax.train.tasks.classification.config import ClassificationConfig, ImagesConfig
from natjax.train.tasks.registry import find_preset, installed_tasks

if TYPE_CHECKING:
    from natjax.train.engine.task import Task


def add_data(commands: argparse._SubParsersAction) -> None:
    """Add the commands to a parser."""
    parser = commands.add_parser("data", help="prepare data sets, and measure reading them")
    parts = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_prepare(parts)
    _add_bench(parts)


def _add_prepare(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "prepare",
        help="ImageNet from its official archives",
        description="Write a data set as TFDS does, from the archives of its authors, without"
        " TensorFlow. Run it again to continue where it stopped.",
    )
    parser.add_argument("name", metavar="NAME", choices=("imagenet2012",), help="imagenet2012")
    parser.add_argument(
        "--manual-dir",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder of ILSVRC2012_img_train.tar, _val.tar and, if there, _test.tar",
    )
    parser.add_argument(
        "--prepared-dir",
        type=Path,
        metavar="DIR",
        help="where to write (default: $NATJAX_DATA or ~/.cache/natjax/data)",
    )
    parser.add_argument(
        "--workers", type=_positive, metavar="N", help="processes that write (default: cores, to 8)"
    )
    parser.add_argument(
        "--partial", action="store_true", help="take archives that are not complete"
    )
    parser.set_defaults(command=_prepare)


def _add_bench(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "bench",
        help="images a second that can be read",
        description="Measure the input pipeline of a configuration: images a second, for each core"
        " that is busy with it, and where the time goes.",
    )
    parser.add_argument("preset", metavar="PRESET", nargs="?", help="name of a preset")
    parser.add_argument("--data.name", dest="name", metavar="NAME", help="data set")
    parser.add_argument("--data.dir", dest="dir", type=Path, metavar="DIR", help="original files")
    parser.add_argument("--data.prepared-dir", dest="prepared_dir", type=Path, metavar="DIR")
    parser.add_argument("--data.image-size", dest="image_size", type=_positive, metavar="PIXELS")
    parser.add_argument("--threads", type=_positive, help="threads (as the preset)")
    parser.add_argument("--workers", type=_number, help="processes; 0: none but this one")
    parser.add_argument("--batch-size", type=_positive, help="images a step (as the preset)")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long (10)")
    parser.add_argument(
        "--images-per-second", type=float, metavar="RATE", help="say how many cores feed this"
    )
    parser.set_defaults(command=_bench)


def _number(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number of 0 or more; got {text!r}")
    return int(text)


def _positive(text: str) -> int:
    if not _number(text):
        raise argparse.ArgumentTypeError("must be 1 or more; got 0")
    return int(text)


def _prepare(args: argparse.Namespace) -> int:
    from natjax.train import console
    from natjax.train.files import cache_folder
    from natjax.train.tasks.classification.datasets.imagenet_prepare import prepare

    root = (args.prepared_dir or cache_folder()).expanduser()
    workers = args.workers or min(os.cpu_count() or 1, 8)
    try:
        done = prepare(args.manual_dir.expanduser(), root, workers=workers, partial=args.partial)
    except KeyboardInterrupt:
        sys.stderr.write("natjax: interrupted; the same command continues\n")
        return 130
    console.say(f"{args.name} is prepared in {done}")
    return 0


def _bench(args: argparse.Namespace) -> int:
    from natjax.train.cluster.processes import Host
    from natjax.train.data.bench import measure, show_measurement, time_stages

    task = _bench_task(args)
    config = task.config
    count = task.train_size()
    measured = measure(
        task.train_batches(0, Host()),
        config.data,
        time_stages(task.input_stages(), count, config.seed),
        seconds=args.seconds,
    )
    side = getattr(config.data, "image_size", None)
    title = config.data.name if side is None else f"{config.data.name}, {side} px"
    show_measurement(measured, title, args.images_per_second)
    return 0


def _bench_task(args: argparse.Namespace) -> "Task[Any]":
    """The task of a preset, of any task; of a data set alone, that of classification."""
    if args.preset is None and args.name is None:
        raise UserError("bench takes a PRESET or --data.name (see `natjax data bench --help`)")
    config: Any
    if args.preset is None:
        definition = installed_tasks()["classification"]
        config = ClassificationConfig(data=ImagesConfig(name=args.name, image_size=224))
    else:
        definition, preset = find_preset(args.preset)
        config = preset.make()
    if not isinstance(getattr(config, "data", None), DataConfig):
        raise UserError(
            f"bench measures tasks whose configuration has `data`, a DataConfig; {args.preset} has"
            " none"
        )
    names = ("name", "dir", "prepared_dir", "image_size", "threads", "workers")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if "image_size" in given and not hasattr(config.data, "image_size"):
        raise UserError(
            f"--data.image-size is not a setting of {args.preset}, whose images have several sizes;"
            f" leave it out, got {args.image_size}"
        )
    changed: dict[str, Any] = {"data": dataclasses.replace(config.data, **given)}
    if args.batch_size is not None:
        changed["batch_size"] = args.batch_size
    return definition.build(dataclasses.replace(config, **changed))
