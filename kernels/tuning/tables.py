"""Tables of tuned settings: JSON, one for each backend and kind of device.

A table is somebody's file: it is checked whole, and its numbers are bounded.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from natjax.kernels.spec import KERNELS, Kernel

# Of natjax itself; the wheel has it.
TUNED = Path(__file__).parent / "tuned"
FOLDER = "NATJAX_TUNED"

# Settings by `CallSpec.key` and kernel.
type Table = dict[str, dict[Kernel, Any]]


def folders() -> dict[str, Path]:
    """Folders that hold tables, first match first, by the name of the source.

    Raises:
      ValueError: NATJAX_TUNED names something that is not a folder.
    """
    extra = os.environ.get(FOLDER)
    if not extra:
        return {"tuned": TUNED}
    if not os.path.isdir(extra):
        raise ValueError(f"the environment variable {FOLDER} must name a folder; got {extra!r}")
    return {FOLDER: Path(extra), "tuned": TUNED}


def path_of(backend: str, device_kind: str, folder: Path) -> Path:
    """File of the settings of a backend's kernels for a kind of device."""
    name = re.sub(r"[^a-z0-9]+", "-", device_kind.lower()).strip("-")
    return folder / backend / f"{name}.json"


@functools.cache
def tuned(path: Path, settings: type) -> Table:
    """The settings of a table, of a backend's class; empty where there is no such file."""
    return read(path, settings) if path.exists() else {}


def read(path: Path, settings: type) -> Table:
    """Read and check a table.

    Args:
      path: the table's file.
      settings: the backend's class of settings, which checks its values.

    Raises:
      ValueError: not such a table; the message names file, entry and rule.
    """
    return _parse(path, _read(path), settings)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise _malformed(path, "JSON", str(error)) from error


def _parse(path: Path, document: Any, settings: type) -> Table:
    entries = _mapping(path, "the table", document).get("configs")
    return {
        key: {
            kernel: _parse_config(path, key, kernel, config, settings)
            for kernel, config in _mapping(path, f"entry {key!r}", entry).items()
        }
        for key, entry in _mapping(path, "'configs'", entries).items()
    }


def _parse_config(path: Path, key: str, kernel: Any, config: Any, settings: type) -> Any:
    place = f"entry {key!r}, kernel {kernel!r},"
    if kernel not in KERNELS:
        raise _malformed(path, f"kernels among {KERNELS}", f"entry {key!r} with {kernel!r}")
    fields = [field.name for field in dataclasses.fields(settings)]
    if sorted(_mapping(path, place, config)) != sorted(fields):
        raise _malformed(path, f"the settings {fields}", f"{place} with {sorted(config)}")
    try:
        # Lists, as JSON has them, become tuples.
        parsed = settings(
            **{name: tuple(x) if isinstance(x, list) else x for name, x in config.items()}
        )
    except ValueError as error:
        raise ValueError(f"{path}: {place} breaks a rule: {error}") from error
    if len(parsed.tile) != _num_axes(key):
        raise _malformed(path, "one side of tile and chunk for each axis", f"{place} {parsed}")
    return parsed


def _num_axes(key: str) -> int:
    """Token axes of the shape that has this `CallSpec.key`."""
    return key.partition("-")[0].count(",") + 1


def _mapping(path: Path, place: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _malformed(path, f"an object as {place}", type(value).__name__)
    return value


def _malformed(path: Path, rule: str, got: str) -> ValueError:
    return ValueError(f"{path} must hold {rule}, as `natjax tune` writes it; got {got}")


def update(
    path: Path,
    key: str,
    kernel: Kernel,
    config: Any,
    measured: Mapping[str, float | str | None],
) -> None:
    """Put the settings of one kernel into a table, whole or not at all.

    Args:
      path: the table's file, which need not exist.
      key: `CallSpec.key`.
      kernel: which kernel.
      config: its settings.
      measured: how they were found; for readers, not used.

    Raises:
      ValueError: the file is no such table; it is left as it is.
      OSError: the folder cannot be written.
    """
    document = _read(path) if path.exists() else {"configs": {}}
    _parse(path, document, type(config))
    document["configs"].setdefault(key, {})[kernel] = dataclasses.asdict(config)
    notes = _mapping(path, "'measured'", document.setdefault("measured", {}))
    _mapping(path, "'measured'", notes.setdefault(key, {}))[kernel] = dict(measured)
    text = json.dumps(document, indent=1, sort_keys=True)
    # A line for each kernel.
    text = re.sub(r"\{[^{}]*\}", lambda match: " ".join(match[0].split()), text)
    _write(path, text + "\n")
    tuned.cache_clear()


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Beside the file, under a name of its own, so that two processes do not write into one another.
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=path.parent, prefix=".partial-", delete=False
    ) as file:
        partial = Path(file.name)
    try:
        partial.write_text(text, encoding="utf-8")
        partial.chmod(0o644)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
