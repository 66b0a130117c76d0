"""Make the committed selection of the op goldens: ``select_ops.py FOLDER_OF_FULL_GOLDENS``.

Masks and merges are kept whole; of the ops, the cases named here: together they cover every
argument.
"""

import json
import pathlib
import sys

import numpy as np

HERE = pathlib.Path(__file__).parent

WHOLE = ("ops_masks", "ops_attention")
KEPT = {
    "ops_na1d": (
        "na1d_basic_k3",
        "na1d_k7_len7_full",
        "na1d_even_k4",
        "na1d_dil3_ragged",
        "na1d_stride3_k5_ragged",
        "na1d_blocked_k5_ragged",
        "na1d_causal_k4",
        "na1d_causal_stride2_dil2",
        "na1d_mqa_causal",
        "na1d_addkv_gqa_causal_dil",
        "na1d_scale",
        "na1d_dlse",
    ),
    "ops_na2d": (
        "na2d_k7x3",
        "na2d_full",
        "na2d_even_odd",
        "na2d_stride_mixed",
        "na2d_causal_rows",
        "na2d_causal_stride_dil",
        "na2d_gqa",
        "na2d_addkv_mqa_stride",
        "na2d_dlse_dil",
    ),
    "ops_na3d": ("na3d_basic_k3", "na3d_causal_stride_dil", "na3d_gqa_addkv"),
    "ops_unfused": (
        "un1d_k5_rpb",
        "un1d_dil3_ragged_rpb",
        "un1d_causal_dil2",
        "un1d_dv_ne_d_rpb",
        "un2d_k5x3_rpb",
        "un2d_addkv_rpb",
        "un3d_causal_t",
    ),
}


def select(full: pathlib.Path, name: str, cases: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The arrays of some cases, and the index cut down to them."""
    with np.load(full / f"{name}.npz") as file:
        index = [case for case in json.loads(str(file["index"])) if case["name"] in cases]
        if len(index) != len(cases):
            raise ValueError(f"{name}: not all of {cases} are there")
        arrays = {key: file[key] for key in file.files if key.split("/")[0] in cases}
    return arrays | {"index": np.array(json.dumps(index))}


def main() -> None:
    """Write the selection beside this script."""
    full = pathlib.Path(sys.argv[1])
    for name in WHOLE:
        with np.load(full / f"{name}.npz") as file:
            np.savez_compressed(HERE / f"{name}.npz", **file)
    for name, cases in KEPT.items():
        np.savez_compressed(HERE / f"{name}.npz", **select(full, name, cases))


if __name__ == "__main__":
    main()
