"""The tasks that can be trained: natjax's own, those of installed packages, and those of files."""

import functools
import importlib
import importlib.util
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from natjax.train.checkpoint.run_folder import RunFolder
from natjax.train.config.serialization import TASK, from_json, to_json
from natjax.train.config.settings import RunConfig
from natjax.train.errors import UserError, did_you_mean
from natjax.train.tasks.definition import Preset, TaskDefinition

# Modules with a `TASK`; those of other packages are the entry points of the group.
_MODULES = (
    "natjax.train.tasks.classification.presets",
    "natjax.train.tasks.segmentation.presets",
    "natjax.train.tasks.detection.presets",
)
_GROUP = "natjax.tasks"


@functools.cache
def installed_tasks() -> dict[str, TaskDefinition]:
    """Return the tasks of natjax and of installed packages, by name.

    A package adds its own by an entry point of the group ``natjax.tasks`` that names a
    `TaskDefinition`.

    Raises:
      UserError: two tasks have one name.
    """
    found = [importlib.import_module(module).TASK for module in _MODULES]
    found += [point.load() for point in entry_points(group=_GROUP)]
    tasks: dict[str, TaskDefinition] = {}
    for task in found:
        if task.name in tasks:
            raise UserError(f"two installed tasks are named {task.name!r}; remove one package")
        tasks[task.name] = task
    return tasks


def all_presets() -> dict[str, Preset]:
    """Return the presets of all installed tasks, by name."""
    return {
        name: preset for task in installed_tasks().values() for name, preset in task.presets.items()
    }


def find_preset(name: str) -> tuple[TaskDefinition, Preset]:
    """Return the task and the preset of a name, or of a Python file.

    Args:
      name: Of a preset; or a file that defines a `TASK`, whose preset of the file's name, else
        whose only preset, is taken. ``FILE.py:PRESET`` names one of several.

    Raises:
      UserError: there is none; near names are suggested.
    """
    file, _, inner = name.partition(":")
    if file.endswith(".py"):
        return _preset_of_file(Path(file), inner)
    for task in installed_tasks().values():
        if name in task.presets:
            return task, task.presets[name]
        reason = task.no_preset(name)
        if reason is not None:
            raise UserError(f"there is no preset {name!r}: {reason}")
    near = did_you_mean(name, all_presets())
    raise UserError(f"unknown preset {name!r}{near} (`natjax train --help` lists all)")


def _preset_of_file(path: Path, name: str) -> tuple[TaskDefinition, Preset]:
    task = load_task_file(path)
    presets = task.presets
    chosen = name or (path.stem if path.stem in presets else next(iter(presets), ""))
    if chosen not in presets or (not name and chosen != path.stem and len(presets) > 1):
        known = ", ".join(f"{path}:{preset}" for preset in presets) or "none"
        raise UserError(f"{path} has no preset {chosen!r}; its presets are {known}")
    return task, presets[chosen]


def load_task_file(path: Path) -> TaskDefinition:
    """Run a Python file and return the `TaskDefinition` that it calls ``TASK``.

    Raises:
      UserError: there is no such file, or no such definition in it.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    name = f"natjax_task_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and worker processes look their classes up there
    spec.loader.exec_module(module)
    task = getattr(module, "TASK", None)
    if not isinstance(task, TaskDefinition):
        raise UserError(f"{path} must define TASK, a natjax.train.tasks.definition.TaskDefinition")
    return task


def settings_of(task: TaskDefinition, config: RunConfig) -> dict[str, Any]:
    """Return what is saved with a run: its configuration, with the name of its task."""
    return {TASK: task.name} | to_json(config)


def read_run(folder: RunFolder, file: Path | None = None) -> tuple[TaskDefinition, RunConfig]:
    """Return the task and the configuration of a run.

    Args:
      folder: The run.
      file: The file that defines its task, for tasks of files. It is never taken from the run
        folder, which may be somebody else's.

    Raises:
      UserError: there is no run, its task is not known here, or its configuration cannot be read.
    """
    settings = folder.read_config()
    name = settings.pop(TASK, None)
    tasks = installed_tasks() if file is None else {(task := load_task_file(file)).name: task}
    if name not in tasks:
        raise UserError(
            f"{folder.path} is a run of the task {name!r}, but"
            f" {'known' if file is None else file} is {', '.join(tasks)}; a task of a file needs"
            " --task FILE.py"
        )
    try:
        return tasks[name], from_json(tasks[name].config, settings)
    except (UserError, TypeError) as error:
        raise UserError(f"{folder.config} cannot be read: {error}") from error
