"""Time and memory of loading weights from a file with the original keys.

    python benchmarks/load.py                    # nat_base, as in docs/weights.md
    python benchmarks/load.py --model dinat_large
    python benchmarks/load.py --hostile          # files made to be dear, as in docs/design.md

Each figure is of a process of its own (Linux). Reading is `read_file` alone; loading is
`create_model(name, weights=path)`, reading included. Memory is the peak above what the process had
with everything imported and JAX's devices started, in units of the file.
"""

import argparse
import io
import json
import pathlib
import pickle
import subprocess
import sys
import tempfile
import time
import tracemalloc
import zipfile


def main() -> None:
    """Write a file of random weights, then measure."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="nat_base")
    parser.add_argument("--format", choices=("pth", "safetensors"), default="pth")
    parser.add_argument("--hostile", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--worker", choices=("write", "read", "load"), help=argparse.SUPPRESS)
    parser.add_argument("--path", type=pathlib.Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(WORKERS[args.worker](args.model, args.path)))
        return
    if args.hostile:
        hostile()
        return
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / f"{args.model}.{args.format}"
        measure("write", args.model, path)
        size = path.stat().st_size
        print(f"{args.model}: {path.suffix} of {size / 1e6:.0f} MB")
        best = {
            worker: min(
                (measure(worker, args.model, path) for _ in range(args.repeats)),
                key=lambda figures: figures["seconds"],
            )
            for worker in ("read", "load")
        }
    for worker, figures in best.items():
        memory = figures["peak_bytes"] / size
        print(f"{worker}: {figures['seconds']:.2f} s, peak {memory:.2f} times the file")
    beyond = best["load"]["seconds"] - best["read"]["seconds"]
    print(f"beyond reading: {beyond:.2f} s")


# Instructions repeated without end, each of which costs as much as it can.
DEAR = {
    "None": b"N",
    "empty dicts": b"}",
    "memo": b"N" + pickle.MEMOIZE,
    "OrderedDicts": b"h\0)R",
    "tuples": b")\x85",
    "short strings": pickle.SHORT_BINUNICODE + b"\1a",
    "names": b"ca\nb\n",
}


def hostile() -> None:
    """Processor time and peak memory of reading files of 1 and 10 MB of instructions."""
    from natjax.weights import WeightsError
    from natjax.weights.formats import read_file

    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "x.pth"
        for name, program in DEAR.items():
            for size in (10**6, 10**7):
                path.write_bytes(archive(program * (size // len(program))))
                figures = []
                for traced in (False, True):  # tracing takes time
                    if traced:
                        tracemalloc.start()
                    began = time.process_time()
                    try:
                        read_file(path)
                        outcome = "read"
                    except WeightsError:
                        outcome = "refused"
                    figures.append(time.process_time() - began)
                peak = tracemalloc.get_traced_memory()[1]
                tracemalloc.stop()
                print(
                    f"{name}, {path.stat().st_size / 1e6:.0f} MB: {outcome},"
                    f" {figures[0]:.2f} s, peak {peak / 2**20:.0f} MiB"
                )


def archive(program: bytes) -> bytes:
    """A file of torch.save with a program between the marks of a tuple."""
    head = pickle.PROTO + b"\2(ccollections\nOrderedDict\nq\0"
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as zipped:
        zipped.writestr("archive/data.pkl", head + program + b"t.")
    return file.getvalue()


def measure(worker: str, model: str, path: pathlib.Path) -> dict[str, float]:
    """Figures of one process."""
    command = [sys.executable, __file__, "--worker", worker, "--model", model, "--path", str(path)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def write(model: str, path: pathlib.Path) -> dict[str, float]:
    """Write random weights with the original keys."""
    from flax import nnx

    import natjax

    natjax.save_weights(natjax.create_model(model, rngs=nnx.Rngs(0)), path, naming="official")
    return {}


def read(model: str, path: pathlib.Path) -> dict[str, float]:
    """Read the file and do nothing with it."""
    from natjax.weights.formats import read_file

    del model
    return measured(lambda: read_file(path))


def load(model: str, path: pathlib.Path) -> dict[str, float]:
    """Make the model of the file."""
    import jax
    from flax import nnx

    import natjax

    def run() -> object:
        made = natjax.create_model(model, weights=path)
        jax.block_until_ready(nnx.state(made))
        return made

    return measured(run)


def measured(run) -> dict[str, float]:
    """Time and peak memory of a call."""
    import jax

    import natjax.weights.load  # noqa: F401 - imports do not count

    jax.numpy.zeros(1).block_until_ready()
    before = memory("VmRSS")
    began = time.perf_counter()
    kept = run()
    seconds = time.perf_counter() - began
    del kept
    return {"seconds": seconds, "peak_bytes": memory("VmHWM") - before}


def memory(name: str) -> int:
    """Bytes of a field of ``/proc/self/status``."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"this needs Linux: /proc/self/status must have {name}")


WORKERS = {"write": write, "read": read, "load": load}

if __name__ == "__main__":
    main()
