"""The state dict inside a file: out of its container, without its prefix, its names recognised."""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from natjax.backbones.names import BACKBONE
from natjax.weights.names import Naming
from natjax.weights.torchfile.tensors import Skipped
from natjax.weights.untrusted import WeightsError, show

if TYPE_CHECKING:
    from natjax.weights.formats import SourceFile

# Where training programs put the weights, and the averaged ones.
_CONTAINERS = ("state_dict", "model")
_AVERAGED = ("state_dict_ema", "model_ema")
# Behind this prefix are the backbones of mmdet, mmseg and detectron2.
BACKBONE_PREFIX = "backbone."


@dataclasses.dataclass
class StateDict:
    """Weights as they were found.

    Attributes:
      where: path of the file.
      format: of the file.
      container: key of the state dict in the file, with the prefix of its keys; empty for none.
      has_average: whether there are averaged weights beside those that were taken.
      naming: whose names the keys are.
      root: what ``{root}`` stands for in them.
      arrays: by key, without container and prefix; whoever loads them may take them out.
      left_out: number of entries that belong to no backbone, by the first part of their keys.
      metadata: of a safetensors file.
    """

    where: str
    format: str
    container: str
    has_average: bool
    naming: Naming
    root: str
    arrays: dict[str, np.ndarray]
    left_out: dict[str, int]
    metadata: dict[str, str]


def find_state_dict(
    file: SourceFile, *, ema: bool = False, namings: Iterable[Naming] = BACKBONE
) -> StateDict:
    """Find the weights in what a file holds.

    Args:
      file: as `natjax.weights.formats.read_file` gives it.
      ema: take the averaged weights of a training checkpoint.
      namings: tables of the names that the keys may be. Where there are several models, one inside
        the other, as a backbone in a detector, the outermost is taken.

    Raises:
      WeightsError: there are none, or more than one model, or no averaged ones.
    """
    where = str(file.path)
    if not isinstance(file.content, Mapping):
        kind = type(file.content).__name__
        raise WeightsError(f"{where} must hold arrays by name; it holds a {kind}")
    container, entries = _open_container(where, file.content, ema)
    naming, prefix = _recognise(where, entries, tuple(namings))
    root = max((r for r in naming.roots if _ends_with_part(prefix, r)), key=len)
    outer = prefix.removesuffix(root)
    arrays, others = _under(where, entries, outer)
    if others and not outer.endswith(BACKBONE_PREFIX):
        arrays |= others  # not a detector's: they will be reported as unexpected
        others = {}
    return StateDict(
        where=where,
        format=file.format,
        container=".".join(part for part in (container, outer.removesuffix(".")) if part),
        has_average=not ema and _averaged(file.content) is not None,
        naming=naming,
        root=root,
        arrays=arrays,
        left_out=dict(collections.Counter(key.partition(".")[0] for key in others)),
        metadata=dict(file.metadata),
    )


def _ends_with_part(prefix: str, part: str) -> bool:
    return prefix.endswith(part) and prefix.removesuffix(part)[-1:] in ("", ".")


def _open_container(
    where: str, content: Mapping[Any, Any], ema: bool
) -> tuple[str, Mapping[Any, Any]]:
    """The key of the state dict, and the state dict."""
    key = _averaged(content) if ema else _first_dict(content, _CONTAINERS)
    if key is not None:
        return key, content[key]
    if ema:
        raise WeightsError(
            f"{where} holds no averaged weights ({' or '.join(_AVERAGED)}); its keys are"
            f" {_first(content)}; load it without ema"
        )
    return "", content


def _averaged(content: Mapping[Any, Any]) -> str | None:
    return _first_dict(content, _AVERAGED)


def _first_dict(content: Mapping[Any, Any], keys: tuple[str, ...]) -> str | None:
    dicts = (key for key in keys if isinstance(content.get(key), Mapping) and content[key])
    return next(dicts, None)


def _recognise(
    where: str, entries: Mapping[Any, Any], namings: Sequence[Naming]
) -> tuple[Naming, str]:
    """Whose names these are, and the prefix before them."""
    found = sorted(_matches(entries, namings), key=lambda match: len(match[1]))
    if not found:
        markers = ", ".join(f"{naming.marker} ({naming.name})" for naming in namings)
        is_backbone = next(_matches(entries, BACKBONE), None) is not None
        hint = "; it is a backbone alone, so load it into the model's backbone"
        raise WeightsError(
            f"{where} holds no NAT or DiNAT: no key ends in one of {markers}; its keys are"
            f" {_first(entries)}{hint if is_backbone else ''}"
        )
    outer = found[0][1]
    if any(prefix == outer or not prefix.startswith(outer) for _, prefix in found[1:]):
        places = ", ".join(show(prefix + naming.marker) for naming, prefix in found[:4])
        raise WeightsError(f"{where} holds {len(found)} models ({places}); keep one of them")
    return found[0]


def _matches(entries: Mapping[Any, Any], namings: Iterable[Naming]) -> Iterator[tuple[Naming, str]]:
    """Every table whose marker ends a key, with what is before it."""
    for naming in namings:
        for key in entries:
            if isinstance(key, str) and _ends_with_part(key, naming.marker):
                yield naming, key.removesuffix(naming.marker)


def _under(
    where: str, entries: Mapping[Any, Any], prefix: str
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays whose keys have the prefix, without it; and all other entries."""
    arrays, others = {}, {}
    for key, value in entries.items():
        if not isinstance(key, str):
            raise WeightsError(f"{where}: names must be strings; got {type(key).__name__}")
        if not key.startswith(prefix):
            others[key] = value
        elif isinstance(value, np.ndarray):
            arrays[key.removeprefix(prefix)] = value
        else:
            kind = type(value).__name__
            unbuilt = isinstance(value, Skipped)
            got = f"{show(value.name, bare=True)}, which is not built" if unbuilt else kind
            raise WeightsError(f"{where}: {show(key)} must be an array; got {got}")
    return arrays, others


def _first(entries: Mapping[Any, Any], count: int = 4) -> str:
    keys = [show(key) for key in itertools.islice(entries, count)]
    return ", ".join(keys) + (", ..." if len(entries) > count else "")
