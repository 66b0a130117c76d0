"""One of several processes that train together: commands of natjax, one after the other.

Usage: python -m two_processes PROCESS PROCESSES PORT RUN

Trains; then process 0 spoils the newest checkpoint, and all train again; then with other settings,
which the folder does not allow; then evaluates together. Exit codes go to standard output as the
last line.
"""

import sys
from pathlib import Path

import jax
import pico

from natjax.cli import main
from natjax.train.cluster import processes

SETTINGS = {
    "steps": 12,
    "checkpoint__every": 4,
    "eval_every": 12,
    "mesh__data": 2,
    "mesh__fsdp": 2,
    "model__drop_path": 0.2,
}


def spoil(checkpoint: Path) -> None:
    """Cut the largest file of a checkpoint."""
    path = max(checkpoint.rglob("*"), key=lambda p: p.stat().st_size)
    path.write_bytes(path.read_bytes()[:-7])


def run() -> None:
    process, count, port, folder = sys.argv[1:]
    jax.config.update("jax_disable_most_optimizations", True)
    # What the first run compiles, the second reads.
    jax.config.update("jax_compilation_cache_dir", f"{folder}-cache")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    pico.register()
    place = {"coordinator": f"127.0.0.1:{port}", "processes": count, "process": process}
    where = {f"distributed__{name}": value for name, value in place.items()}
    codes = []
    for changes in ({}, {}, {"seed": 3}):
        if len(codes) == 1:
            processes.wait("first run")
            if processes.index() == 0:
                spoil(Path(folder) / "checkpoints" / "12")
            processes.wait("spoiled")
        flags = pico.flags(folder, **SETTINGS, **where, **changes)
        codes.append(main(["train", "digits", *flags]))
    codes.append(main(["eval", folder, "--batch-size", "60"]))
    sys.stdout.write(" ".join(map(str, codes)) + "\n")


if __name__ == "__main__":
    run()
