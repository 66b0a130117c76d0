"""Folders with a folder of images for each class; the sorted names give the classes."""

from pathlib import Path

from natjax.train.errors import UserError


def class_folders(folder: Path) -> list[Path]:
    """Return the folders of the classes, in the order of their labels; hidden ones do not count."""
    return sorted(
        path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")
    )


def image_files(folder: Path) -> list[Path]:
    """Return the files of a class in order; links are followed, hidden files do not count."""
    return sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))


def check_flat(folder: Path) -> None:
    """Refuse folders inside the folder of a class: nobody could say what they mean.

    Raises:
      UserError: there is one, or a link that leads nowhere.
    """
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if path.is_dir():
            raise UserError(f"{folder} is the folder of a class and must hold files, got {path}/")
        if not path.exists():
            raise UserError(f"{path} is a link that leads nowhere; remove it, or what it names is")
