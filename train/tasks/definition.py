"""How a task is found: light, so that presets can be listed without loading what trains them."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from natjax.train.config.settings import RunConfig

if TYPE_CHECKING:
    from natjax.train.engine.task import Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
    """A configuration that can be trained by name.

    Attributes:
      make: Makes it.
      description: For help texts; its first line stands for it in lists.
      start_from: What ``--init`` may be given, for presets that fine-tune and so need it.
    """

    make: Callable[[], RunConfig]
    description: str
    start_from: str | None = None

    @property
    def summary(self) -> str:
        """The first line of the description."""
        return self.description.splitlines()[0]


def preset_of(make: Callable[[], RunConfig]) -> Preset:
    """Return the preset of a function, which its docstring describes."""
    return Preset(make=make, description=make.__doc__ or make.__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskDefinition:
    """A task that can be trained.

    Attributes:
      name: It is saved with every run of the task.
      config: Class of its configurations.
      presets: What can be trained, by name.
      build: Makes the task of a configuration; it imports what is heavy.
      no_preset: Says why there is no preset of a name that one may look for, if it knows.
    """

    name: str
    config: type[RunConfig]
    presets: Mapping[str, Preset]
    build: "Callable[[Any], Task[Any]]"
    no_preset: Callable[[str], str | None] = lambda _: None
