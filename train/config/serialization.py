"""The JSON form of a configuration, and the comparison of two configurations."""

import dataclasses
import types
import typing
from pathlib import Path
from typing import Any

from natjax.train.config.settings import TrainConfig
from natjax.train.errors import UserError


def to_json(config: TrainConfig) -> dict[str, Any]:
    """Return the configuration as nested dicts of JSON values; paths become strings."""
    return _jsonable(dataclasses.asdict(config))


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _jsonable(item) for name, item in value.items()}
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Path) else value


def from_json(values: dict[str, Any]) -> TrainConfig:
    """Return the configuration that `to_json` wrote.

    Raises:
      UserError: a name is unknown (written by another version), or a value breaks its rule.
    """
    return _build(TrainConfig, values, "")


def _build(kind: Any, values: dict[str, Any], prefix: str) -> Any:
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise UserError(f"unknown setting {prefix}{unknown[0]}: written by another natjax version?")
    return kind(
        **{name: _convert(hints[name], value, prefix + name) for name, value in values.items()}
    )


def _convert(hint: Any, value: Any, name: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, f"{name}.")
    if typing.get_origin(hint) is tuple:
        return tuple(value)  # JSON knows lists only
    wants_path = isinstance(hint, types.UnionType) and Path in typing.get_args(hint)
    return Path(value) if wants_path and value is not None else value


# Settings that change where and how fast a run goes, not what it computes (up to rounding).
_FREE = frozenset(
    {
        "run",
        "mesh.data",
        "mesh.fsdp",
        "distributed.coordinator",
        "distributed.processes",
        "distributed.process",
        "distributed.timeout",
        "data.dir",
        "data.prepared_dir",
        "data.threads",
        "data.workers",
        "checkpoint.keep_latest",
        "checkpoint.keep_best",
        "profile.steps",
        "profile.start",
        "compilation_cache",
        "tensorboard",
        "wandb",
        "on_nan",
        "max_skipped",
    }
)


def differences(old: TrainConfig, new: TrainConfig) -> list[str]:
    """List settings that forbid continuing `old` as `new`, as ``"name: old -> new"``.

    Folders, the mesh, processes, threads, what checkpoints are kept, what is written besides, and
    what is done about a loss that is not finite may change between two parts of a run.
    """
    before, after = _flat(to_json(old)), _flat(to_json(new))
    return [
        f"{name}: {before[name]} -> {after[name]}"
        for name in before
        if name not in _FREE and before[name] != after[name]
    ]


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            out |= _flat(value, f"{prefix}{name}.")
        else:
            out[prefix + name] = value
    return out
