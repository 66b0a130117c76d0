"""What reading COCO's annotations takes: time and memory, from a file of as many as COCO has.

    python benchmarks/annotations.py            # 118,287 images, 860,001 objects, about 450 MB
    python benchmarks/annotations.py --part 0.1

The file is made up: photos of 640 x 480 with as many objects, and polygons with as many points, as
in COCO's training set. The second time is that of every later start, from what is kept.
"""

import argparse
import json
import os
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

IMAGES, OBJECTS, POINTS = 118_287, 860_001, 24
SIZE = (480, 640)


def write_file(path: Path, part: float) -> None:
    """Write annotations of round objects with ragged outlines."""
    rng = np.random.default_rng(0)
    images, objects = int(IMAGES * part), int(OBJECTS * part)
    angles = np.linspace(0, 2 * np.pi, POINTS, endpoint=False)
    with path.open("w") as file:
        file.write('{"images": [')
        for i in range(images):
            image = {"id": i, "file_name": f"{i:012}.jpg", "height": SIZE[0], "width": SIZE[1]}
            file.write(("," if i else "") + json.dumps(image))
        file.write('], "annotations": [')
        for i in range(objects):
            radius = 10 ** rng.uniform(0.7, 2.2)
            ragged = radius * rng.uniform(0.8, 1.2, POINTS)
            center = rng.uniform(0, 1, 2) * (SIZE[1], SIZE[0])
            points = center + ragged[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)
            points = np.clip(points, 0, (SIZE[1], SIZE[0])).round(2)
            low, high = points.min(axis=0), points.max(axis=0)
            entry = {
                "id": i,
                "image_id": int(rng.integers(images)),
                "category_id": int(rng.integers(1, 81)),
                "bbox": [*low.tolist(), *(high - low).round(2).tolist()],
                "area": float(np.pi * radius**2),
                "iscrowd": 0,
                "segmentation": [points.ravel().tolist()],
            }
            file.write(("," if i else "") + json.dumps(entry))
        categories = [{"id": i, "name": f"class {i}"} for i in range(1, 81)]
        file.write('], "categories": ' + json.dumps(categories) + "}")


def peak_megabytes() -> float:
    """Most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", type=float, default=1.0, help="share of COCO's training set")
    part = parser.parse_args().part
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        os.environ["NATJAX_DATA"] = str(root / "cache")
        write_file(root / "train.json", part)

        from natjax.train.tasks.detection.datasets.coco import read_split

        before = peak_megabytes()
        print(f"file: {(root / 'train.json').stat().st_size / 1e6:,.0f} MB")
        for name in ("read", "again"):
            began, cpu = time.perf_counter(), time.process_time()
            found = read_split(root, "train")
            took, spent = time.perf_counter() - began, time.process_time() - cpu
            print(f"{name}: {took:.1f} s ({spent:.1f} s of one core), {len(found.ids):,} objects")
        kept = sum(path.stat().st_size for path in (root / "cache").rglob("*.npy"))
        print(f"kept: {kept / 1e6:,.0f} MB; most memory: {peak_megabytes() - before:,.0f} MB more")


if __name__ == "__main__":
    main()
