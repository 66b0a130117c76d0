"""From what the caller calls weights to a file on this machine."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.error import HTTPError

from natjax.weights.download import cache_folder, download
from natjax.weights.errors import WeightsError
from natjax.weights.published import PUBLISHED, find_published

_HUB = "https://huggingface.co"
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_URL = re.compile(r"\w[\w+.-]*://")


def is_published_name(weights: str | os.PathLike[str]) -> bool:
    """Whether weights are called by name, such as ``"imagenet1k"``; a file of that name wins."""
    names = {entry.weights for entry in PUBLISHED}
    return isinstance(weights, str) and weights in names and not os.path.exists(weights)


def resolve(weights: str | os.PathLike[str], models: list[str]) -> Path:
    """The file of some weights, downloaded where it is not here.

    Args:
      weights: path, URL, ``hf://org/name``, or name of published weights.
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
        return _from_hub(text.removeprefix("hf://"))
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
    known = dict.fromkeys(e.weights for e in PUBLISHED if not models or e.model in models)
    return f", nor published weights of that name; there are {', '.join(known)}" if known else ""


def _from_hub(name: str) -> Path:
    if _HUB_NAME.fullmatch(name) is None:
        raise WeightsError(f"hf:// must be followed by organisation/model; got {name!r}")
    address = f"{_HUB}/{name}/resolve/main"
    try:
        return download(f"{address}/model.safetensors", cache_folder())
    except WeightsError as error:
        if not _is_absent(error):
            raise
    return download(f"{address}/pytorch_model.bin", cache_folder())


def _is_absent(error: WeightsError) -> bool:
    """Whether the server has no such file, as of models from before safetensors."""
    return isinstance(error.__cause__, HTTPError) and error.__cause__.code == 404
