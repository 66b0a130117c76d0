"""Configurations as JSON or TOML: written, read back, laid over another."""

import dataclasses
import json
import tomllib
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from natjax.train.config.settings import RunConfig
from natjax.train.errors import UserError, did_you_mean

# Beside the settings in a file: the name of the task that they belong to.
TASK = "task"


def to_json(config: RunConfig) -> dict[str, Any]:
    """Return the configuration as nested dicts of JSON values; paths become strings."""
    return _jsonable(dataclasses.asdict(config))


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _jsonable(item) for name, item in value.items()}
    if isinstance(value, tuple):
        return [_jsonable(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def from_json[Config: RunConfig](kind: type[Config], values: dict[str, Any]) -> Config:
    """Return the configuration that `to_json` wrote.

    Args:
      kind: Its class.
      values: What was written.

    Raises:
      UserError: a name is unknown, a value is of the wrong type, or breaks its rule.
    """
    return kind(**_fields(kind, None, values, ""))


def override[Config: RunConfig](config: Config, values: dict[str, Any]) -> Config:
    """Return a configuration with some settings replaced.

    Args:
      config: The others are its own.
      values: Nested as `to_json` has them. Names may be written with hyphens, and the text "none"
        stands for None, of which TOML has none.

    Raises:
      UserError: a name is unknown, a value is of the wrong type, or breaks its rule.
    """
    return dataclasses.replace(config, **_fields(type(config), config, values, ""))


def _fields(kind: Any, old: Any, values: Any, prefix: str) -> dict[str, Any]:
    """The values of a dataclass' fields; those that are dataclasses are laid over the old ones."""
    if not isinstance(values, dict):
        raise UserError(f"{prefix.rstrip('.') or 'the configuration'} must be a table of settings")
    hints = {x.name: x.type for x in dataclasses.fields(kind)}
    hints = {name: hint for name, hint in typing.get_type_hints(kind).items() if name in hints}
    found = {}
    for written, value in values.items():
        name = written.replace("-", "_")
        if name not in hints:
            near = did_you_mean(name, hints)
            raise UserError(f"unknown setting {prefix}{name}{near}")
        before = None if old is None else getattr(old, name)
        found[name] = _convert(hints[name], before, value, prefix + name)
    return found


def _convert(hint: Any, old: Any, value: Any, name: str) -> Any:
    if dataclasses.is_dataclass(hint):
        inner = _fields(hint, old, value, f"{name}.")
        return hint(**inner) if old is None else dataclasses.replace(old, **inner)
    if isinstance(hint, types.UnionType):
        if value is None or value == "none":
            return None
        (hint,) = [part for part in typing.get_args(hint) if part is not types.NoneType]
    if typing.get_origin(hint) is tuple and isinstance(value, list):
        return _tuple(hint, value, name)
    fits, rule = _RULES.get(hint, (_one_of(hint), "one of those that --help lists"))
    if not fits(value):
        raise UserError(f"{name} must be {rule}, got {value!r}")
    return hint(value) if hint in (float, Path) else value


def _tuple(hint: Any, values: list[Any], name: str) -> tuple[Any, ...]:
    parts = typing.get_args(hint)
    if parts[-1] is Ellipsis:
        parts = parts[:1] * len(values)
    if len(parts) != len(values):
        raise UserError(f"{name} must have {len(parts)} values, got {len(values)}")
    return tuple(_convert(part, None, x, name) for part, x in zip(parts, values, strict=True))


def _one_of(hint: Any) -> Callable[[Any], bool]:
    return lambda value: value in typing.get_args(hint)


def _is(*kinds: type) -> Callable[[Any], bool]:
    # A bool is an int to Python, but 1 is no answer to yes or no, nor yes a number.
    return lambda value: isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))


_RULES: dict[Any, tuple[Callable[[Any], bool], str]] = {
    bool: (_is(bool), "true or false"),
    int: (_is(int), "a whole number"),
    float: (_is(int, float), "a number"),
    str: (_is(str), "a text"),
    Path: (_is(str), "a path"),
}


def read_config_file(path: Path) -> dict[str, Any]:
    """Return the settings in a file, ``.toml`` or ``.json``, such as the config.json of a run.

    Args:
      path: The file; its key ``task``, if there, names the task of the settings.

    Raises:
      UserError: it cannot be read.
    """
    readers = {".toml": tomllib.loads, ".json": json.loads}
    if path.suffix not in readers:
        raise UserError(f"a configuration must be a .toml or .json file, got {path}")
    try:
        values = readers[path.suffix](path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold a table of settings, got {type(values).__name__}")
    return values
