"""Files that are there whole or not at all."""

import os
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Write a text file; it is replaced at once, and never in part."""
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    os.replace(partial, path)


def cache_folder() -> Path:
    """Return natjax's folder of data: $NATJAX_DATA, else one in the user's cache."""
    if os.environ.get("NATJAX_DATA"):
        return Path(os.environ["NATJAX_DATA"]).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "natjax" / "data"
