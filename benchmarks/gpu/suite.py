"""The correctness suite on this device, in several processes: compiling takes most of its time."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

_ROOT = pathlib.Path(__file__).parents[2]
# The options in pyproject.toml ask for packages that are not needed here.
_OPTIONS = [
    "--override-ini=addopts=",
    "--import-mode=importlib",
    "-p",
    "no:cacheprovider",
    "-p",
    "benchmarks.gpu.shard",
    "-q",
    "-rfEs",
    "--tb=short",
]

# What depends on the device. Slow is what is interpreted elsewhere; here it is compiled.
ON_DEVICE = "(triton or (xla and not slow)) and not toy"
# What pytest prints of tests as they end: "..s.F      [ 50%]".
_DOTS = re.compile(r"[.sxXEF]+( +\[ *\d+%\])?")


def run(tests: Sequence[str], processes: int, seconds: float, select: str = "") -> bool:
    """Run tests and print what each process says last; True if all passed in time.

    Args:
      tests: files or folders.
      processes: how many share the tests.
      seconds: when those still running are ended.
      select: which tests, as pytest's option -k has it; all by default.
    """
    begin = time.monotonic()
    environment = os.environ | {"PYTHONPATH": str(_ROOT), "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    with tempfile.TemporaryDirectory() as folder:
        started = []
        for i in range(processes):
            command = [
                sys.executable,
                "-m",
                "pytest",
                *tests,
                *_OPTIONS,
                f"-k={select}",
                f"--shard={i}/{processes}",
            ]
            log = pathlib.Path(folder, str(i))
            with log.open("w") as file:
                process = subprocess.Popen(
                    command, cwd=_ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT
                )
            started.append((process, log))
        results = [_finish(*each, begin + seconds - time.monotonic()) for each in started]
    passed = all(results)
    print(f"tests: {'passed' if passed else 'FAILED'} in {time.monotonic() - begin:.0f} s")
    return passed


def _finish(process: subprocess.Popen[bytes], log: pathlib.Path, seconds: float) -> bool:
    """Wait, print the summary, and say whether all of the share passed."""
    try:
        code = process.wait(max(seconds, 0.1))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        code = None
    text = log.read_text(errors="replace")
    lines = text.splitlines()
    if code is None:
        dots = [line for line in lines if _DOTS.fullmatch(line)]
        done = sum(len(line.split(" ")[0]) for line in dots)
        print(f"tests: out of time after {done} tests of a share")
        print("\n".join(line for line in lines if line not in dots))
    elif code != 0:
        print("\n".join(lines[-60:]))
    else:
        skipped = re.findall(r"^SKIPPED.*", text, re.M)
        print("\n".join([*skipped, *lines[-1:]]))
    sys.stdout.flush()
    return code == 0
