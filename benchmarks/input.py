"""Images a second: natjax' input pipeline and tf.data's, on the same cores in the same run.

    python benchmarks/input.py --tf-python PYTHON --output benchmarks/results

Both decode JPEG files of 500x375 pixels from memory, cut out a random part (8 to 100 % of the
area), resize it to 224x224, bicubic and antialiased, flip half of them, and make batches of uint8.
The files are made from scikit-learn's two photographs. natjax runs its own pipeline (Grain,
Pillow); tf.data decodes only the part (`tf.io.decode_and_crop_jpeg`). Runs take turns, since other
work on the machine comes and goes; the figures are medians, and ratios are medians of the ratios
within each turn. "A core" divides by the time that all cores together spent: on a machine that is
busy with other work (the table tells its load), this is the figure to compare, as the share of the
cores that a program gets there grows with the number of its threads, and tf.data starts more.

TensorFlow is needed for this alone, in an environment of its own:

    python3 -m venv tf && tf/bin/pip install tensorflow-cpu      # then PYTHON is tf/bin/python
"""

import argparse
import datetime
import importlib
import io
import json
import os
import pathlib
import pickle
import platform
import statistics
import subprocess
import sys
import tempfile
import time

SIDE, BATCH, FILES = 224, 64, 128
_TITLE = "# Reading and augmenting photos, beside tf.data"
NAMES = {
    "natjax": "natjax, threads",
    "natjax-workers": "natjax, worker processes",
    "tf": "tf.data",
    "tf-aliased": "tf.data, resized without antialiasing",
}


def main() -> None:
    """Make the files, take turns, report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tf-python", help="Python of an environment with TensorFlow")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each run (5)")
    parser.add_argument("--parallel", type=int, default=os.cpu_count(), help="threads or processes")
    parser.add_argument("--output", type=pathlib.Path, help="folder for input.json and input.md")
    parser.add_argument("--worker", choices=NAMES, help=argparse.SUPPRESS)
    parser.add_argument("--files", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(run(args)))
        return
    if args.tf_python is None:
        print("without --tf-python only natjax is measured (see --help)", file=sys.stderr)
    names = [name for name in NAMES if args.tf_python or not name.startswith("tf")]
    load = os.getloadavg()[0]  # before what is measured adds to it
    with tempfile.NamedTemporaryFile(suffix=".pickle") as file:
        pickle.dump(jpeg_files(), file)
        file.flush()
        turns = [
            {name: measure(name, file.name, args) for name in names} for _ in range(args.turns)
        ]
    result = {"about": about(args, turns, load), "turns": turns}
    text = table(result, names)
    print(text)
    if args.output:
        (args.output / "input.json").write_text(json.dumps(result, indent=1) + "\n")
        (args.output / "input.md").write_text(f"{_TITLE}\n\n{text}\n")


def jpeg_files() -> list[bytes]:
    """JPEG files of 500x375 pixels, parts of scikit-learn's photographs; 67 KB in the mean."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_sample_images

    rng, files = np.random.default_rng(0), []
    for i in range(FILES):
        photo = Image.fromarray(load_sample_images().images[i % 2])
        scale = rng.uniform(0.79, 1.0)
        left, top = rng.uniform(0, 640 - 625 * scale * 0.8), rng.uniform(0, 427 - 375 * scale)
        box = (left, top, left + 500 * scale, top + 375 * scale)
        part = photo.resize((500, 375), Image.Resampling.BICUBIC, box=box)
        out = io.BytesIO()
        part.save(out, "JPEG", quality=92)
        files.append(out.getvalue())
    return files


def measure(name: str, files: str, args: argparse.Namespace) -> dict[str, float]:
    """Figures of one run, in a process of its own."""
    python = args.tf_python if name.startswith("tf") else sys.executable
    command = [python, __file__, "--worker", name, "--files", files]
    command += ["--seconds", str(args.seconds), "--parallel", str(args.parallel)]
    env = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=env)
    return json.loads(done.stdout.splitlines()[-1])


def run(args: argparse.Namespace) -> dict[str, float | str]:
    """Run one pipeline for some seconds."""
    files = pickle.loads(pathlib.Path(args.files).read_bytes())  # our own, of this run
    made = tf_batches(files, args) if args.worker.startswith("tf") else natjax_batches(files, args)
    batches, version = made
    for _ in range(3):  # threads, processes and buffers are started
        shape = next(batches).shape
    assert shape == (BATCH, SIDE, SIDE, 3)
    began, before, images = time.perf_counter(), cpu_seconds(), 0
    while time.perf_counter() - began < args.seconds:
        images += len(next(batches))
    seconds, spent = time.perf_counter() - began, cpu_seconds() - before
    return {
        "images_per_second": images / seconds,
        "images_per_core_second": images / spent,
        "version": version,
    }


def cpu_seconds() -> float:
    """Time of all cores that this process and its children have had (Linux)."""
    ticks = 0
    for pid in [os.getpid(), *descendants(os.getpid())]:
        try:
            fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except FileNotFoundError:
            continue
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def descendants(pid: int) -> list[int]:
    """Processes that a process has started, and those that they have."""
    text = "".join(p.read_text() for p in pathlib.Path(f"/proc/{pid}/task").glob("*/children"))
    found = [int(word) for word in text.split()]
    return found + [x for child in found for x in descendants(child)]


class Files:
    """The files as records, as many as ImageNet has."""

    def __init__(self, files: list[bytes]):
        self.files = files

    def __len__(self) -> int:
        return 1_281_167

    def __getitem__(self, index: int) -> dict:
        return {"image": self.files[index % len(self.files)], "label": 0}


def natjax_batches(files: list[bytes], args: argparse.Namespace):
    """Batches of natjax' own pipeline."""
    import grain
    import PIL

    from natjax.train.cluster.processes import Host
    from natjax.train.data.pipeline import read
    from natjax.train.tasks.classification.config import AugmentConfig, ImagesConfig
    from natjax.train.tasks.classification.datasets.registry import get_spec
    from natjax.train.tasks.classification.examples import train_images

    processes = args.worker.endswith("workers")
    threads, workers = (1, args.parallel) if processes else (args.parallel, 0)
    data = ImagesConfig(name="imagenet2012", image_size=SIDE, threads=threads, workers=workers)
    augment = AugmentConfig(crop="resized", interpolation="bicubic", hflip=0.5)
    dataset = train_images(
        Files(files), get_spec(data), data, augment, seed=0, batch_size=BATCH, host=Host()
    )
    version = f"grain {grain.__version__}, Pillow {PIL.__version__}"
    return (batch["image"] for batch in read(dataset, data)), version


def tf_batches(files: list[bytes], args: argparse.Namespace):
    """Batches of tf.data."""
    tf = importlib.import_module("tensorflow")  # which natjax' own environment has not

    tf.config.threading.set_inter_op_parallelism_threads(args.parallel)
    tf.config.threading.set_intra_op_parallelism_threads(args.parallel)

    def example(data):
        shape = tf.io.extract_jpeg_shape(data)
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            shape,
            tf.zeros((1, 0, 4)),
            area_range=(0.08, 1.0),
            aspect_ratio_range=(3 / 4, 4 / 3),
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        window = tf.concat([begin[:2], size[:2]], axis=0)
        part = tf.io.decode_and_crop_jpeg(data, window, channels=3)
        antialias = args.worker == "tf"
        part = tf.image.resize(part, (SIDE, SIDE), "bicubic", antialias=antialias)
        part = tf.image.random_flip_left_right(part)
        return tf.cast(tf.clip_by_value(tf.round(part), 0, 255), tf.uint8)

    options = tf.data.Options()
    options.threading.private_threadpool_size = args.parallel
    batches = (
        tf.data.Dataset.from_tensor_slices(files)
        .repeat()
        .shuffle(FILES)
        .map(example, num_parallel_calls=args.parallel)
        .batch(BATCH, drop_remainder=True)
        .prefetch(2)
        .with_options(options)
    )
    return iter(batches.as_numpy_iterator()), f"tensorflow {tf.__version__}"


def about(args: argparse.Namespace, turns: list, load: float) -> dict:
    """Where and how it was measured."""
    return {
        "command": "python benchmarks/input.py"
        + (" --tf-python PYTHON" if args.tf_python else "")
        + f" --turns {args.turns} --seconds {args.seconds:g} --parallel {args.parallel}",
        "date": datetime.date.today().isoformat(),
        "cpus": os.cpu_count(),
        "processor": processor(),
        "load": load,
        "python": platform.python_version(),
        "versions": {name: figures["version"] for name, figures in turns[0].items()},
    }


def processor() -> str:
    """Name of the processor (Linux)."""
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def table(result: dict, names: list[str]) -> str:
    """The figures as Markdown."""
    known, turns = result["about"], result["turns"]
    versions = "; ".join(dict.fromkeys(known["versions"].values()))
    lines = [
        f"`{known['command']}`, {known['date']}, {known['cpus']} x {known['processor']}, Python"
        f" {known['python']}; {versions}. JPEG 500x375 to 224x224."
        f" Load of the machine before: {known['load']:.1f}.",
        "",
        "| pipeline | images/s | images/s a core | of natjax, threads | the same, a core |",
        "|---|---|---|---|---|",
    ]
    for name in names:
        cells = [NAMES[name]]
        figures = ("images_per_second", "images_per_core_second")
        cells += [f"{statistics.median(turn[name][x] for turn in turns):.0f}" for x in figures]
        for figure in figures:
            ratios = [turn[name][figure] / turn["natjax"][figure] for turn in turns]
            cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
