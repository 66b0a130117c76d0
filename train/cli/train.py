"""The command ``natjax train``."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from natjax.train import console
from natjax.train.cluster import processes
from natjax.train.config.fitting import fitted, written_settings
from natjax.train.config.serialization import TASK, override, read_config_file
from natjax.train.config.settings import RunConfig
from natjax.train.errors import Stopped, UserError
from natjax.train.tasks.definition import TaskDefinition
from natjax.train.tasks.registry import all_presets, find_preset, settings_of

_EXIT_CODES = """\
exit codes:
  0    all steps are done
  1    training failed: the loss is not finite, or data workers die
  2    wrong use, wrong data, or a disk that is full or read-only
  130  Ctrl-C: after the step, with all saved; a second one stops at once
  143  SIGTERM (preemption): after the step, with all saved
After 130 and 143 the same command continues, to the bit on the same devices."""


def add_train(commands: argparse._SubParsersAction) -> None:
    """Add the command to a parser."""
    texts = {name: preset.summary for name, preset in all_presets().items()}
    width = max(map(len, texts))
    parser = commands.add_parser(
        "train",
        help="train a model; run it again to continue",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Train a model by a preset, or a task of your own by the Python file that\n"
        "defines it. The same command again continues where it stopped.",
        epilog="presets:\n"
        + "\n".join(f"  {name:<{width}}  {text}" for name, text in texts.items())
        + "\n\n`natjax train PRESET --help` lists every setting.\n"
        "A flag counts more than --config, which counts more than the preset.\n\n" + _EXIT_CODES,
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="settings, TOML or JSON, such as a run's own"
    )
    parser.add_argument("preset", metavar="PRESET", help="name of a preset, or FILE.py[:PRESET]")
    parser.add_argument(
        "settings", nargs=argparse.REMAINDER, help="such as --run DIR --epochs 5 --mesh.data 4"
    )
    parser.set_defaults(command=_train)


def parse_train(
    preset: str, args: Sequence[str], config_file: Path | None = None
) -> tuple[TaskDefinition, RunConfig]:
    """Return a task, and a preset with settings replaced.

    Args:
      preset: Name of the preset, or a Python file.
      args: Flags, as in ``["--epochs", "5", "--mesh.data", "4"]``; ``--config FILE`` may be first.
      config_file: Settings that are laid over the preset before the flags.

    Raises:
      UserError: there is no such preset, a setting is wrong, or weights to start from are missing.
      SystemExit: after ``--help`` (0) or a wrong flag (2), which has been explained.
    """
    task, config, _ = _parse(preset, args, config_file)
    return task, config


def _parse(
    preset: str, args: Sequence[str], config_file: Path | None
) -> tuple[TaskDefinition, RunConfig, str]:
    """As `parse_train`; and what of the preset has adapted, in words."""
    import tyro

    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--config", type=Path, default=config_file)
    found, flags = early.parse_known_args(args)
    task, chosen = find_preset(preset)
    settings = {} if found.config is None else _settings_in(found.config, task)
    config, adapted = fitted(chosen.make(), written_settings(flags, settings))
    config = override(config, settings)
    config = tyro.cli(
        task.config,
        default=config,
        args=flags,
        prog=f"natjax train {preset}",
        description=chosen.description,
    )
    if chosen.start_from is not None and config.init is None:
        raise UserError(
            f"{preset} fine-tunes weights of ImageNet-22K: pass --init FILE or"
            f" --init {chosen.start_from}"
        )
    return task, config, adapted


def _settings_in(path: Path, task: TaskDefinition) -> dict[str, object]:
    settings = read_config_file(path)
    name = settings.pop(TASK, task.name)
    if name != task.name:
        raise UserError(f"{path} is for the task {name!r}, the preset for {task.name!r}")
    return settings


def _train(args: argparse.Namespace) -> int:
    task, config, adapted = _parse(args.preset, args.settings, args.config)
    run = config.run or Path("runs") / default_run(args.preset)
    from natjax.train.engine.loop import train

    try:
        processes.start(config.distributed)  # so that one of them prints
        if adapted:
            console.say(adapted)
        built = task.build(config)
        train(built, run, settings_of(task, built.config))
    except Stopped as stop:
        stop.args = (f"{stop}; the same command continues {run}",)
        raise
    except KeyboardInterrupt:
        text = f"interrupted; the same command continues {run} from its last checkpoint"
        raise KeyboardInterrupt(text) from None
    return 0


def default_run(preset: str) -> str:
    """Return the name of the run folder of a preset, or of a file and its preset.

    >>> default_run("examples/denoise.py:small")
    'denoise-small'
    """
    file, _, inner = preset.partition(":")
    return "-".join(filter(None, (Path(file).stem, inner)))
