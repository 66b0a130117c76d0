"""Files that are there whole or not at all."""

import os
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Write a text file; it is replaced at once, and never in part."""
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    os.replace(partial, path)
