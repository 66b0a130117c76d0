"""Make the committed selection of the detection goldens from a folder with all of them.

    python tests/golden/select_detection.py FOLDER

Arrays are kept bit by bit. What the losses, their gradients and the final detections depend on is
left out where it is large.
"""

import pathlib
import sys

import numpy as np

_MAPS = ("feat", "fpn", "rpn_cls", "rpn_reg", "proposals")
_STAGE = ("sample", "bbox_", "cls_", "mask_", "rcnn_target/")
_STAGES = tuple(f"s{i}.{part}" for i in range(3) for part in _STAGE)

# file: beginnings of the keys to leave out
LEFT_OUT = {
    "det_ops": (),
    "det_roialign": ("7_sr0_legacy/", "14_sr0_aligned/", "7_sr0_aligned/grad64", "7_sr2"),
    "det_masks": (
        "mask/polygon",
        "mask/target_polygon",
        "paste/binary_cpu",
    ),
    "maskrcnn_nat": (),
    "maskrcnn_nat_train": (*_MAPS, *_STAGE, "rpn_target/bbox_"),
    "maskrcnn_nat_grads": ("grad/input0",),
    "maskrcnn_nat_infer": (),
    "cascade_dinat": (),
    "cascade_dinat_train": (*_MAPS, *_STAGES, "rpn_target/"),
    "cascade_dinat_grads": ("grad/input0", "grad/param/backbone"),
    "cascade_dinat_infer": (),
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
