"""Make the committed selection of the model goldens from a folder with all of them.

    python tests/golden/select_models.py FOLDER

One config and its padded case a family. Arrays are kept bit by bit.
"""

import pathlib
import sys

import numpy as np

# file: (config, case, which gradients to keep)
SELECTION = {
    "nat": ("b", "oneside", "grad/"),
    "dinat": ("b", "oneside", "grad/input"),
    "dinats": ("b", "oneside", "grad/input"),
    "isotropic": ("dinat_pad", "sq", "grad/input"),
    "vit_rpb": ("a", "sq", None),
}


def is_selected(key, config, case, gradients):
    """Whether an array belongs to the selection."""
    if "/grad/" in key and not (gradients and key.startswith(f"{config}/{case}/{gradients}")):
        return False
    keep = (f"{config}/config", f"{config}/param/", f"{config}/{case}/", f"{config}/backbone/")
    return key.startswith(keep)


def main(folder):
    """Write the selection beside this file."""
    for name, selection in SELECTION.items():
        with np.load(pathlib.Path(folder) / f"{name}.npz") as full:
            arrays = {key: full[key] for key in full.files if is_selected(key, *selection)}
        path = pathlib.Path(__file__).with_name(f"{name}.npz")
        np.savez_compressed(path, **arrays)
        print(f"{path.name}: {len(arrays)} arrays, {path.stat().st_size / 1e6:.2f} MB")  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1])
