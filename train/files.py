"""Files that are there whole or not at all, and folders that must be of a file system."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from natjax.train.errors import UserError

# How a Path writes "gs://bucket/run".
_URL = re.compile(r"([a-z][a-z0-9+.-]+):/(?!/)(.*)", re.IGNORECASE)


def require_local(name: str, path: Path | None) -> None:
    """Check that a path is not the address of a bucket, for which a folder would be made here.

    A run locks its folder, adds to files and renames them, which object stores do not offer.

    Args:
      name: Of the setting.
      path: Its value.

    Raises:
      UserError: it is such an address.
    """
    found = _URL.fullmatch(str(path))
    if found is not None:
        scheme, rest = found.groups()
        raise UserError(
            f"{name} must be a folder of this machine or of storage that is mounted here (NFS,"
            f" Lustre, Filestore), got {scheme}://{rest}; the bucket's own tools copy folders"
            " to and from it"
        )


def write_whole(path: Path, text: str) -> None:
    """Write a text file; it is replaced at once, and never in part."""
    write_whole_bytes(path, text.encode())


def write_whole_bytes(path: Path, data: bytes) -> None:
    """Write a file; it is replaced at once, and never in part."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_bytes(data)
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def picture_paths(images: Sequence[Path], folder: Path) -> list[Path]:
    """Return a PNG file of a folder for each image; images of one name are numbered.

    >>> [path.name for path in picture_paths([Path("a/x.jpg"), Path("b/x.jpg")], Path("out"))]
    ['x.png', 'x-2.png']
    """
    seen: dict[str, int] = {}
    paths = []
    for image in images:
        count = seen[image.stem] = seen.get(image.stem, 0) + 1
        suffix = "" if count == 1 else f"-{count}"
        paths.append(folder / f"{image.stem}{suffix}.png")
    return paths


def cache_folder() -> Path:
    """Return natjax's folder of data: $NATJAX_DATA, else one in the user's cache."""
    if os.environ.get("NATJAX_DATA"):
        return Path(os.environ["NATJAX_DATA"]).expanduser()
    return user_cache() / "data"


def user_cache() -> Path:
    """Return natjax's folder in the user's cache, for what can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "natjax"
