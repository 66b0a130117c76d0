"""The command ``natjax tune``: measure settings of GPU kernels and write them to a table."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import fnmatch
import math
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from natjax.kernels.tuning.problems import Problem
    from natjax.kernels.tuning.search import Result

# The implementations whose kernels can be measured.
_BACKENDS = ("jax_triton", "pallas_triton", "mosaic_gpu")

_EPILOG = """\
Each kernel is timed alone with many block sizes, warps and stages, which takes minutes a problem.
What is found is written at once, so that Ctrl-C loses only the kernel at hand, and is added to what
the table holds. Tables for a device kind are read from the folder that the environment variable
NATJAX_TUNED names, then from natjax itself; `natjax.explain` tells what a call gets.

examples:
  natjax tune                                    the layers of NAT-Tiny and DiNAT-Tiny
  natjax tune 'dinat_*' --dtype float32
  natjax tune --shape 64x64 --kernel-size 9 --head-dim 64 --value-dim 128 --no-bias
"""


def add_tune(commands: Any) -> None:
    """Add the command to the parser of ``natjax``."""
    parser = commands.add_parser(
        "tune",
        help="measure GPU kernels for this GPU",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Find the fastest settings of the GPU kernels on the present GPU.",
        epilog=_EPILOG,
    )
    parser.add_argument(
        "problems", metavar="PROBLEM", nargs="*", help="named problems, such as 'nat_tiny-*'"
    )
    shape = parser.add_argument_group("a problem of one's own; one value, or one for each axis")
    shape.add_argument("--shape", type=_sizes, metavar="NxN", help="tokens, such as 56x56")
    shape.add_argument("--kernel-size", type=_sizes, metavar="K", help="window size")
    shape.add_argument("--dilation", type=_sizes, metavar="D", default=(1,), help="(1)")
    shape.add_argument("--stride", type=_sizes, metavar="S", default=(1,), help="(1)")
    shape.add_argument("--causal", action="store_true", help="hide later keys along every axis")
    shape.add_argument("--heads", type=_positive, default=4, help="(4)")
    shape.add_argument("--head-dim", type=_positive, default=32, help="(32)")
    shape.add_argument("--value-dim", type=_positive, help="(as --head-dim)")
    shape.add_argument("--no-bias", action="store_true", help="no relative position bias")
    how = parser.add_argument_group("how")
    how.add_argument("--batch", type=_positive, default=64, help="images at once (64)")
    how.add_argument(
        "--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16", help="(bfloat16)"
    )
    how.add_argument(
        "--ops",
        nargs="+",
        choices=("attention", "qk", "av"),
        default=["attention"],
        help="the fused op (attention), or halves of the unfused one",
    )
    how.add_argument(
        "--implementation",
        choices=_BACKENDS,
        help="whose kernels to measure (those that calls use: jax_triton, if it is installed)",
    )
    how.add_argument("--candidates", type=_positive, default=24, help="blocks for each kernel (24)")
    how.add_argument("--repeats", type=_positive, default=7, help="timings of each (7)")
    how.add_argument("--output", type=Path, metavar="DIR", help="folder of the table")
    parser.set_defaults(command=run)


def _used() -> str:
    """The implementation that a call uses which names none."""
    from natjax.kernels.backends.jax_triton import support

    return "jax_triton" if support.is_installed() else "pallas_triton"


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(_positive(part) for part in text.lower().split("x"))


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of 1 or more; got {text!r}")
    return int(text)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from natjax.kernels import device
    from natjax.kernels.tuning import search, tables

    found = 0
    try:
        search.require_gpu()
        backend = args.implementation or _used()
        path = tables.path_of(backend, device.kind(), _folder(args.output))
        results = search.tune(
            _problems(args),
            backend=backend,
            dtype=args.dtype,
            ops=args.ops,
            limit=args.candidates,
            repeats=args.repeats,
            begin=lambda problem, kernel: _tell(f"{problem} {kernel} ... ", end=""),
        )
        _tell(f"measuring on {device.kind()}, for {path}")
        for result in results:
            if result.config is not None:
                _store(path, result)
                found += 1
            _tell(_line(result))
    except KeyboardInterrupt:
        _tell("")
        return _fail(f"interrupted; {path} keeps the settings of {found} kernels", 130)
    except (ValueError, NotImplementedError) as error:
        return _fail(str(error), 2)
    if not found:
        return _fail("no candidate of any kernel works here", 1)
    _tell(f"{path} has the settings of {found} kernels")
    return 0


def _folder(output: Path | None) -> Path:
    """The folder to write to, which is there and can be written."""
    from natjax.kernels import device
    from natjax.kernels.tuning import tables

    chosen = output or Path(os.environ.get(tables.FOLDER) or tables.TUNED)
    if chosen == tables.TUNED and device.is_interpreted():
        raise ValueError("timings of interpreted kernels are for tests alone; give --output DIR")
    try:
        chosen.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=chosen):
            return chosen
    except OSError as error:
        raise ValueError(
            f"{chosen} cannot be written ({error.strerror}); choose a folder by --output DIR, and "
            f"set the environment variable {tables.FOLDER}=DIR for natjax to find the table there"
        ) from error


def _problems(args: argparse.Namespace) -> list[Problem]:
    """The problems asked for; checked, since measuring takes long."""
    from natjax.kernels.tuning import problems

    known = (*problems.NAT_TINY, *problems.NAT_BASE, *problems.DINAT_TINY)
    chosen = [_own_problem(args)] if args.shape or args.kernel_size else []
    for pattern in args.problems or ([] if chosen else ["nat_tiny-*", "dinat_tiny-*"]):
        matches = [x for x in known if fnmatch.fnmatchcase(x.name, pattern)]
        if not matches:
            names = ", ".join(x.name for x in known)
            raise ValueError(f"PROBLEM must match one of {names}; got {pattern!r}")
        chosen += matches
    return [dataclasses.replace(x, batch=args.batch) for x in chosen]


def _own_problem(args: argparse.Namespace) -> Problem:
    from natjax.kernels.tuning.problems import Problem

    if args.shape is None or args.kernel_size is None:
        raise ValueError("--shape and --kernel-size must be given together; got one of them")
    if len(args.shape) > 3:
        raise ValueError(f"--shape must have 1 to 3 axes; got {len(args.shape)}")

    def per_axis(flag: str, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(value) not in (1, len(args.shape)):
            raise ValueError(f"{flag} must have one value or {len(args.shape)}; got {len(value)}")
        return value if len(value) > 1 else value * len(args.shape)

    problem = Problem(
        name="x".join(map(str, args.shape)),
        shape=args.shape,
        kernel_size=per_axis("--kernel-size", args.kernel_size),
        stride=per_axis("--stride", args.stride),
        dilation=per_axis("--dilation", args.dilation),
        is_causal=(args.causal,) * len(args.shape),
        heads=args.heads,
        head_dim=args.head_dim,
        value_dim=args.value_dim or 0,
        rpb=not args.no_bias,
    )
    _ = problem.neighborhood  # checks the sizes against one another
    return problem


def _line(result: Result) -> str:
    """What came out, in one line."""
    skipped = ", ".join(f"{count} {reason}" for reason, count in result.skipped.items())
    count = f"{result.measured} candidates" + (f", skipped: {skipped}" if skipped else "")
    if result.config is None:
        return f"nothing works; {count}"
    tile, chunk = ("x".join(map(str, x)) for x in (result.config.tile, result.config.chunk))
    return (
        f"{result.seconds * 1e6:.1f} us, suggested {result.suggested_seconds * 1e6:.1f} us; tile "
        f"{tile}, chunk {chunk}, {result.config.num_warps} warps, {result.config.num_stages} "
        f"stages; {count}"
    )


def _store(path: Path, result: Result) -> None:
    import jax

    import natjax
    from natjax.kernels.tuning import tables

    assert result.config is not None
    suggested = result.suggested_seconds
    measured = {
        "problem": result.problem,
        "microseconds": round(result.seconds * 1e6, 2),
        "suggested_microseconds": None if math.isnan(suggested) else round(suggested * 1e6, 2),
        "candidates": result.measured,
        "skipped": sum(result.skipped.values()),
        "date": datetime.date.today().isoformat(),
        "jax": jax.__version__,
        "natjax": natjax.__version__,
    }
    tables.update(path, result.spec.key, result.kernel, result.config, measured)


def _tell(text: str, end: str = "\n") -> None:
    sys.stderr.write(text + end)
    sys.stderr.flush()


def _fail(message: str, code: int) -> int:
    _tell(f"natjax: {message}")
    return code
