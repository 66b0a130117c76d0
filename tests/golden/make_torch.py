"""Make ``torch_resize.npz``: PyTorch's bicubic interpolation of small tables, see README.md."""

import importlib
import pathlib

import numpy as np

SIZES = (((13, 13), (21, 21)), ((11, 9), (5, 7)), ((3, 5), (7, 4)))


def main() -> None:
    """Write the file beside this script."""
    torch = importlib.import_module("torch")
    rng, found = np.random.default_rng(0), {}
    for old, new in SIZES:
        table = rng.normal(0, 0.02, (1, *old))
        resized = torch.nn.functional.interpolate(
            torch.tensor(table)[None], size=new, mode="bicubic", align_corners=False
        )
        name = f"{old[0]}x{old[1]}_to_{new[0]}x{new[1]}"
        found |= {f"{name}/table": table, f"{name}/resized": resized[0].numpy()}
    np.savez_compressed(pathlib.Path(__file__).parent / "torch_resize.npz", **found)


if __name__ == "__main__":
    main()
