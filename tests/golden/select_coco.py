"""Make the committed selection of the goldens of COCO's data and scores from a folder with all.

    python tests/golden/select_coco.py FOLDER

Arrays are kept bit by bit; images, which are large, are left out.
"""

import pathlib
import sys

import numpy as np

LEFT_OUT = {
    "transforms_det": ("/img", "bgr"),
    "coco_eval": ("precision_all_areas", "mmdet/stats"),
}


def main(folder):
    """Write the selection beside this file."""
    for name, endings in LEFT_OUT.items():
        with np.load(pathlib.Path(folder) / f"{name}.npz") as full:
            arrays = {key: full[key] for key in full.files if not key.endswith(endings)}
        path = pathlib.Path(__file__).with_name(f"{name}.npz")
        np.savez_compressed(path, **arrays)
        print(f"{path.name}: {len(arrays)} arrays, {path.stat().st_size / 1e6:.3f} MB")  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1])
