"""Make the committed selection of the detection goldens from a folder with all of them.

    python tests/golden/select_detection.py FOLDER

Arrays are kept bit by bit, except those that `smaller` says.
"""

import pathlib
import sys

import numpy as np

# file: beginnings of the keys to leave out
LEFT_OUT = {
    "det_ops": ("loss/",),
    "det_roialign": ("7_sr0_legacy/", "14_sr0_aligned/", "7_sr0_aligned/grad64", "7_sr2"),
    "det_masks": (
        "mask/target_bitmap14",
        "mask/polygon",
        "mask/target_polygon",
        "paste/binary_cpu",
    ),
}


def main(folder):
    """Write the selection beside this file."""
    for name, left_out in LEFT_OUT.items():
        with np.load(pathlib.Path(folder) / f"{name}.npz") as full:
            arrays = {key: full[key] for key in full.files if not key.startswith(left_out)}
        path = pathlib.Path(__file__).with_name(f"{name}.npz")
        np.savez_compressed(path, **arrays)
        print(f"{path.name}: {len(arrays)} arrays, {path.stat().st_size / 1e6:.2f} MB")  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1])
