"""The published weights (`published.json`), and the way from what weights are called to a file."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.resources
import json
import os
import re
from pathlib import Path
from typing import Any

from natjax.weights.cache import cache_folder
from natjax.weights.download import download
from natjax.weights.untrusted import WeightsError, show

_URL = re.compile(r"\w[\w+.-]*://")
_HUB_NAME = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(\w[\w./-]*))?", re.ASCII)
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")  # the second from before safetensors


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
    """One published file.

    Attributes:
      model: name of the model, or of its backbone.
      weights: what to call the weights, such as ``"imagenet1k"``.
      address: where the file is.
      task: what it was trained for.
      resolution: side of the training images, or height and width.
      accuracy: as published; not measured by natjax.
      whole: name of the detector or segmentor that the file is of, whose weights are called by
        the data alone, such as ``"ade20k"``; None for a backbone.
      options: arguments of `natjax.create_model` that differ from the model's own.
    """

    model: str
    weights: str
    address: str
    task: str
    resolution: str
    accuracy: str
    whole: str | None = None
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def is_classifier(self) -> bool:
        """Whether the file is of a classifier, and not of a detector or segmentor."""
        return self.task.startswith("ImageNet")

    def names(self, model: str) -> tuple[str, ...]:
        """What the weights are called for a model, the shortest first; empty if not for it."""
        if model == self.whole:
            return (self.weights.partition("_")[0], self.weights)
        return (self.weights,) if model == self.model else ()


def _read_table() -> tuple[Published, ...]:
    text = importlib.resources.files("natjax.weights").joinpath("published.json").read_text("utf-8")
    table = json.loads(text)
    return tuple(
        Published(
            **{key: value for key, value in entry.items() if key not in ("file", "options")},
            address=table["base"] + entry["file"],
            options={key: _tuples(value) for key, value in entry.get("options", {}).items()},
        )
        for entry in table["files"]
    )


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


PUBLISHED = _read_table()


def published_weights(model: str) -> list[str]:
    """Names of a model's published weights.

    Args:
      model: name of a classifier, detector or segmentor (`natjax.list_models`).

    Raises:
      ValueError: no model of that name; the message suggests near ones.

    >>> from natjax.weights import published_weights
    >>> published_weights("nat_tiny")
    ['imagenet1k', 'coco_maskrcnn', 'coco_cascade', 'ade20k_upernet']
    >>> published_weights("upernet_nat_tiny")
    ['ade20k']
    """
    found = [entry.names(model)[0] for entry in PUBLISHED if entry.names(model)]
    if not found:
        from natjax.registry import find_config  # here, as models may import their weights

        find_config(model)
    return found


def find_published(models: list[str], weights: str) -> Published:
    """The entry of published weights.

    Args:
      models: names of the models that they may be for.
      weights: what they are called.

    Raises:
      WeightsError: there is none, or one for each of several models.
    """
    named = [(entry, entry.names(model)) for entry in PUBLISHED for model in models]
    known = [(entry, names) for entry, names in named if names]
    found = [entry for entry, names in known if weights in names]
    if len(found) == 1:
        return found[0]
    if found:
        names = " and ".join(entry.model for entry in found)
        raise WeightsError(f"weights {weights!r} are published for {names}; pass the file or URL")
    names = ", ".join(dict.fromkeys(names[0] for _, names in known))
    have = f"has {names}" if known else "has none; pass a file or URL"
    raise WeightsError(f"no published weights {weights!r}: {' or '.join(models)} {have}")


@functools.cache
def _names() -> frozenset[str]:
    models = ((entry, model) for entry in PUBLISHED for model in (entry.model, entry.whole))
    return frozenset(name for entry, model in models if model for name in entry.names(model))


def is_published_name(weights: object) -> bool:
    """Whether weights are called by name, such as ``"imagenet1k"``; a file of that name wins."""
    return isinstance(weights, str) and weights in _names() and not os.path.isfile(weights)


def resolve(weights: str | os.PathLike[str], models: list[str]) -> Path:
    """The file of some weights, downloaded where it is not here.

    Args:
      weights: path, URL, ``hf://org/name`` with or without ``@revision``, or name of published
        weights.
      models: names of the models that published weights may be for.

    Raises:
      WeightsError: there is no such file or address, or the download failed.
    """
    if is_published_name(weights):
        if not models:
            raise WeightsError(f"weights {str(weights)!r} need the name of a published model")
        return download(find_published(models, str(weights)).address, cache_folder())
    text = str(weights)
    if text.startswith("hf://"):
        return _download_from_hub(text.removeprefix("hf://"))
    if _URL.match(text):
        return download(text, cache_folder())
    path = Path(weights).expanduser()
    if not path.exists():
        raise WeightsError(f"there is no file {path}{_published_hint(text, models)}")
    return path


def _published_hint(text: str, models: list[str]) -> str:
    """Which names there are, where the text looks like one."""
    if re.fullmatch(r"\w+", text) is None:
        return ""
    named = (name for model in models for name in published_weights(model))
    known = ", ".join(dict.fromkeys(named) if models else sorted(_names()))
    return f", nor published weights of that name; there are {known}" if known else ""


def _download_from_hub(name: str) -> Path:
    """Download weights of a model on the Hugging Face hub, by the hub's own library and cache.

    The library's settings hold: tokens (``HF_TOKEN``), mirrors (``HF_ENDPOINT``), ``HF_HOME``.

    Args:
      name: ``organisation/model``, and ``@revision`` (branch, tag or commit) where it matters.

    Raises:
      WeightsError: no such model or file, no network, or the library is not there.
    """
    found = _HUB_NAME.fullmatch(name)
    if found is None:
        raise WeightsError(
            "hf:// must be followed by organisation/model, with @revision where wanted; got"
            f" {show(name)}"
        )
    repository, revision = found.groups()
    try:
        from huggingface_hub import errors, hf_hub_download
    except ModuleNotFoundError as error:
        address = f"https://huggingface.co/{repository}/resolve/{revision or 'main'}"
        raise WeightsError(
            "hf:// needs a library: pip install 'natjax[hub]'; or give the address of the file,"
            f" {address}/{_HUB_FILES[0]} or {_HUB_FILES[1]}"
        ) from error
    try:
        for file in _HUB_FILES:
            with contextlib.suppress(errors.RemoteEntryNotFoundError):
                return Path(hf_hub_download(repository, file, revision=revision))
    except (errors.HfHubHTTPError, OSError, ValueError) as error:
        reason = show(str(error).partition("\n")[0], bare=True, longest=300)
        raise WeightsError(f"hf://{name}: {reason}") from None
    raise WeightsError(f"hf://{name}: the model must have one of {', '.join(_HUB_FILES)}")
