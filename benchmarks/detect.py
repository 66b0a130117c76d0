"""Time of a detector's operations, beside torchvision's.

    python benchmarks/detect.py                                # operations of natjax alone
    python benchmarks/detect.py --torch-python OTHER/python    # beside torchvision's, in turns
    python benchmarks/detect.py --chip v5e:2x2    # what the operations compile to, without the chip

Whole detectors: `python -m benchmarks.detector`.

torchvision runs in a process of its own, since it need not be installed beside JAX; both use all
cores, one at a time. Each figure is the median of the rounds, with the least in brackets.
"""

import argparse
import functools
import importlib
import json
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import numpy as np

# The pyramid of an image of 800 x 1344 pixels.
SIZES, STRIDES, CHANNELS = ((200, 336), (100, 168), (50, 84), (25, 42)), (4, 8, 16, 32), 256
IMAGE = (800, 1344)
PROBLEMS = {
    **{f"nms of {count}": {"count": count} for count in (1000, 2000, 4000)},
    "roi_align 7x7 of 512": {"count": 512, "bins": 7, "gradient": False},
    "roi_align 7x7 of 512, with gradient": {"count": 512, "bins": 7, "gradient": True},
    "roi_align 14x14 of 128": {"count": 128, "bins": 14, "gradient": False},
    "roi_align 14x14 of 128, with gradient": {"count": 128, "bins": 14, "gradient": True},
}
IOU, KEPT = 0.7, 1000


def make_boxes(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes around 40 objects, as proposals lie, and scores."""
    rng = np.random.default_rng(count)
    centres = rng.uniform(0, 1, (40, 2)) * IMAGE[::-1]
    sides = np.exp(rng.uniform(np.log(16), np.log(400), (40, 1)) + rng.normal(0, 0.4, (40, 2)))
    which = rng.integers(0, 40, count)
    centre = centres[which] + rng.normal(0, 0.25, (count, 2)) * sides[which]
    side = sides[which] * np.exp(rng.normal(0, 0.2, (count, 2)))
    boxes = np.concatenate([centre - side / 2, centre + side / 2], axis=1)
    boxes = np.clip(boxes, 0, np.asarray(IMAGE[::-1] * 2))
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    return boxes.astype(np.float32), rng.random(count).astype(np.float32)


def make_pyramid() -> list[np.ndarray]:
    """Maps, channels last."""
    rng = np.random.default_rng(0)
    return [rng.standard_normal((1, *size, CHANNELS), np.float32) for size in SIZES]


def natjax_run(name: str) -> Callable[[], np.ndarray]:
    """One run of a problem with natjax, compiled; returns a result to compare."""
    import jax
    import jax.numpy as jnp

    from natjax.dense.ops.nms import nms
    from natjax.dense.ops.roi_align import roi_align

    options = PROBLEMS[name]
    boxes, scores = map(jnp.asarray, make_boxes(options["count"]))
    if name.startswith("nms"):
        run = jax.jit(lambda b, s: nms(b, s, iou_threshold=IOU, max_kept=KEPT))

        def call() -> np.ndarray:
            kept = run(boxes, scores)
            return np.asarray(kept.indices)[np.asarray(kept.valid)]

        return call
    pyramid = [jnp.asarray(x) for x in make_pyramid()]

    def align(pyramid: list, boxes: object) -> object:
        return roi_align(pyramid, boxes, strides=STRIDES, output_size=options["bins"])

    if options["gradient"]:
        align = jax.grad(lambda p, b, a=align: 0.5 * jnp.sum(jnp.square(a(p, b))))
    run = jax.jit(align)

    def call() -> np.ndarray:
        out = jax.block_until_ready(run(pyramid, boxes[None]))
        return np.asarray(out[0])  # the first map's gradient, or the only image's grids

    return call


def torchvision_run(name: str) -> Callable[[], np.ndarray]:
    """One run of a problem with torchvision; returns a result to compare."""
    torch = importlib.import_module("torch")  # of another Python than the type checker's
    ops = importlib.import_module("torchvision.ops")

    options = PROBLEMS[name]
    boxes, scores = map(torch.from_numpy, make_boxes(options["count"]))
    if name.startswith("nms"):
        return lambda: ops.nms(boxes, scores, IOU)[:KEPT].numpy()
    pyramid = [torch.from_numpy(x.transpose(0, 3, 1, 2).copy()) for x in make_pyramid()]
    side = ((boxes[:, 2:] - boxes[:, :2]).prod(dim=1)).sqrt()
    levels = torch.floor(torch.log2(side / 56 + 1e-6)).clamp(0, 3)
    bins = options["bins"]

    def align(maps: list) -> object:
        grids = maps[0].new_zeros(len(boxes), CHANNELS, bins, bins)
        for level, (x, stride) in enumerate(zip(maps, STRIDES, strict=True)):
            chosen = torch.nonzero(levels == level)[:, 0]
            own = ops.roi_align(x, [boxes[chosen]], bins, 1 / stride, 0, aligned=True)
            grids = grids.index_copy(0, chosen, own)
        return grids

    def call() -> np.ndarray:
        if not options["gradient"]:
            with torch.no_grad():
                return align(pyramid).numpy().transpose(0, 2, 3, 1)
        maps = [x.clone().requires_grad_() for x in pyramid]
        (0.5 * align(maps).square().sum()).backward()
        return maps[0].grad.numpy().transpose(0, 2, 3, 1)

    return call


class Torchvision:
    """torchvision in another Python, which answers line by line."""

    def __init__(self, python: str):
        self.process = subprocess.Popen(
            [python, __file__, "--worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self, name: str, path: str) -> float:
        """Seconds of one run, whose result is written to a file."""
        self.process.stdin.write(json.dumps([name, path]) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            sys.exit("torchvision's process ended; see above")
        return json.loads(line)


def work() -> None:
    """The other process: run what is asked for, and answer with the seconds it took."""
    ready = {}
    for line in sys.stdin:
        name, path = json.loads(line)
        if name not in ready:
            ready[name] = torchvision_run(name)
            ready[name]()
        start = time.perf_counter()
        result = ready[name]()
        seconds = time.perf_counter() - start
        np.save(path, result)
        print(json.dumps(seconds), flush=True)


def compare(torch_python: str | None, rounds: int, only: str = "") -> None:
    """Print a table of the problems whose names begin with ``only``."""
    other = Torchvision(torch_python) if torch_python else None
    heads = ["problem", "natjax ms"]
    if other:
        heads += ["torchvision ms", "times as fast", "largest difference"]
    print("| " + " | ".join(heads) + " |\n|" + " --- |" * len(heads))
    with tempfile.TemporaryDirectory() as folder:
        path = str(pathlib.Path(folder) / "result.npy")
        for name in (name for name in PROBLEMS if name.startswith(only)):
            run = natjax_run(name)
            result = run()
            ours, theirs = [], []
            for _ in range(rounds):
                start = time.perf_counter()
                run()
                ours.append(1e3 * (time.perf_counter() - start))
                if other:
                    theirs.append(1e3 * other(name, path))
            cells = [name, _figure(ours)]
            if other:
                difference = np.abs(result - np.load(path)).max()
                factor = statistics.median(theirs) / statistics.median(ours)
                cells += [_figure(theirs), f"{factor:.1f}", f"{difference:.1g}"]
            print("| " + " | ".join(cells) + " |", flush=True)


def _figure(times: list[float]) -> str:
    return f"{statistics.median(times):.1f} ({min(times):.1f})"


def read_program(chip: str) -> None:
    """Print what a TPU's compiler makes of the operations, ahead of time."""
    import jax
    from jax.experimental import topologies

    from natjax.dense.ops.nms import nms
    from natjax.dense.ops.roi_align import roi_align

    device = topologies.get_topology_desc(platform="tpu", topology_name=chip).devices[0]
    here = jax.sharding.SingleDeviceSharding(device)

    def shaped(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, np.float32, sharding=here)

    def align(pyramid: list, boxes: jax.Array) -> jax.Array:
        return roi_align(pyramid, boxes, strides=STRIDES, output_size=7)

    def gradient(pyramid: list, boxes: jax.Array) -> list:
        return jax.vjp(lambda p: align(p, boxes), pyramid)[1](align(pyramid, boxes))

    pyramid = [shaped(1, *size, CHANNELS) for size in SIZES]
    suppress = functools.partial(nms, iou_threshold=IOU, max_kept=KEPT)
    for name, function, *arguments in (
        ("nms of 4000", suppress, shaped(4000, 4), shaped(4000)),
        ("roi_align 7x7 of 512", align, pyramid, shaped(1, 512, 4)),
        ("roi_align 7x7 of 512, with gradient", gradient, pyramid, shaped(1, 512, 4)),
    ):
        program = jax.jit(function).lower(*arguments).compile()
        text, memory = program.as_text(), program.memory_analysis()
        counts = {op: len(re.findall(rf" {op}\(", text)) for op in ("while", "sort", "scatter")}
        megabytes = memory.temp_size_in_bytes / 1e6
        print(f"{name}: {counts}, {megabytes:.1f} MB of temporaries", flush=True)


def main() -> None:
    """Measure what the flags say."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--torch-python", help="a Python that has torchvision")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="", help="problems whose names begin so")
    parser.add_argument("--chip", help="compile for a TPU slice, such as v5e:2x2, and count")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work()
    elif args.chip:
        read_program(args.chip)
    else:
        compare(args.torch_python, args.rounds, args.only)


if __name__ == "__main__":
    main()
