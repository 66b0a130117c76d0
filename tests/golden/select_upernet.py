"""Make the committed selection of the UPerNet goldens from a folder with all of them.

    python tests/golden/select_upernet.py FOLDER

One of the two models: parameters, one training step, inference at one scale. Of the gradients,
those of the heads, of the output norms and of the first level. Arrays are kept bit by bit.
"""

import pathlib
import sys

import numpy as np

SELECTION = {
    "upernet_dinats": (
        "config",
        "param/",
        "train/input",
        "train/label",
        "train/feat0",
        "train/feat1",
        "train/feat2",
        "train/logits",
        "train/aux_logits",
        "train/loss/",
        "eval/",
    ),
    "upernet_dinats_grads": (
        "train/grad/input0",
        "train/grad/param/decode_head.",
        "train/grad/param/auxiliary_head.",
        "train/grad/param/backbone.norm",
        "train/grad/param/backbone.layers.0.",
    ),
    "upernet_dinats_infer": (
        "whole/input",
        "whole/ori_shape",
        "whole/p",
        "slide/",
    ),
}


def main(folder):
    """Write the selection beside this file."""
    for name, prefixes in SELECTION.items():
        with np.load(pathlib.Path(folder) / f"{name}.npz") as full:
            arrays = {key: full[key] for key in full.files if key.startswith(prefixes)}
        path = pathlib.Path(__file__).with_name(f"{name}.npz")
        np.savez_compressed(path, **arrays)
        print(f"{path.name}: {len(arrays)} arrays, {path.stat().st_size / 1e6:.2f} MB")  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1])
