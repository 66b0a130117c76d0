"""Weights on the Hugging Face hub, by its own library, which is an extra."""

import contextlib
import re
from pathlib import Path

from natjax.weights.errors import WeightsError, show

_NAME = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(\w[\w./-]*))?", re.ASCII)
_FILES = ("model.safetensors", "pytorch_model.bin")  # the second from before safetensors


def download_from_hub(name: str) -> Path:
    """Download weights of a model on the Hugging Face hub, by the hub's own library and cache.

    The library's settings hold: tokens (``HF_TOKEN``), mirrors (``HF_ENDPOINT``), ``HF_HOME``.

    Args:
      name: ``organisation/model``, and ``@revision`` (branch, tag or commit) where it matters.

    Raises:
      WeightsError: no such model or file, no network, or the library is not there.
    """
    found = _NAME.fullmatch(name)
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
            f" {address}/{_FILES[0]} or {_FILES[1]}"
        ) from error
    try:
        for file in _FILES:
            with contextlib.suppress(errors.RemoteEntryNotFoundError):
                return Path(hf_hub_download(repository, file, revision=revision))
    except (errors.HfHubHTTPError, OSError, ValueError) as error:
        reason = show(str(error).partition("\n")[0], bare=True, longest=300)
        raise WeightsError(f"hf://{name}: {reason}") from None
    raise WeightsError(f"hf://{name}: the model must have one of {', '.join(_FILES)}")
