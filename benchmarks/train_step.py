"""The training step of NAT-Tiny beside Swin-Tiny's: images a second, attention, memory, input.

    python -m benchmarks.train_step              # into benchmarks/results/train_step_cpu.{json,md}
    python -m benchmarks.train_step --batch 128  # on a GPU: train_step_gpu.{json,md}
    python -m benchmarks.train_step --tiny --json x.json

It needs jax, flax and jaxtyping, and what flax brings. Both models go through the step of the
preset `nat_tiny_imagenet` (mixup, erasing, stochastic depth, AdamW), compiled by the same code and
measured by turns, so that all see the same machine; times are medians, spreads half the distance of
the quartiles. How the other figures come about:

- Attention: the time that a step saves when attention returns its values unseen. Projections, and
  whatever else belongs to a block, stay. What the compiler gains by dropping queries and keys is in
  this figure too.
- Memory: what the compiled step needs at once, as its compiler counts (arguments, results and
  temporaries), of which parameters and optimizer take the same in both models, up to their sizes.
- Input wait: how much longer steps take when each gets another batch from memory, put on the device
  while the step before runs. Decoding is not in it: `natjax data bench` measures that.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import functools
import json
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import natjax
from benchmarks import swin
from benchmarks.steps import IMAGENET, IMAGENET_IMAGES, step_of
from natjax.backbones.nat import NAT, NATConfig
from natjax.nn.attention import NeighborhoodAttention2D
from natjax.train.config.settings import MeshConfig
from natjax.train.engine.compile import Compiled, compile_training
from natjax.train.engine.network import split_network
from natjax.train.engine.sharding import device_grid, mesh_of, put_batch
from natjax.train.engine.step import StepSetup
from natjax.train.tasks.classification.config import AugmentConfig
from natjax.train.tasks.classification.recipes import imagenet_preset
from natjax.train.tasks.classification.task import Classification

RESULTS = pathlib.Path(__file__).parent / "results"
_DROP_PATH = 0.2

type Build = Callable[[], nnx.Module]
type Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Variant:
    """One model, with and without attention.

    Attributes:
      name: in the table.
      build: makes the model.
      build_without: makes it with attention that returns its values.
    """

    name: str
    build: Build
    build_without: Build


def variants(dtype: str, tiny: bool) -> list[Variant]:
    """What is measured; the first is what the others are compared with."""

    def nat(attends: bool) -> nnx.Module:
        config = natjax.backbones.variants.VARIANTS["nat_tiny"]
        if tiny:
            config = NATConfig(dim=32, depths=(1, 1), num_heads=(1, 2))
        model = NAT(config, dtype=dtype, rngs=nnx.Rngs(0))
        if not attends:
            for _, block in nnx.iter_graph(model):
                if isinstance(block, NeighborhoodAttention2D):
                    block._ops = (swin.pass_values, *block._ops[1:])
        return model

    def peer(attend: swin.Attend) -> nnx.Module:
        shape = swin.SwinConfig(drop_path=_DROP_PATH)
        if tiny:
            shape = dataclasses.replace(shape, dim=32, depths=(2,), num_heads=(1,))
        return swin.Swin(shape, attend=attend, dtype=dtype, rngs=nnx.Rngs(0))

    without = functools.partial(peer, swin.pass_values)
    return [
        Variant("nat_tiny", functools.partial(nat, True), functools.partial(nat, False)),
        Variant("swin_tiny", functools.partial(peer, swin.attend_in_windows), without),
        Variant("swin_tiny, our op", functools.partial(peer, swin.attend_in_blocks), without),
    ]


class Step:
    """A compiled training step with a state of its own.

    Attributes:
      compile_seconds: what tracing and compiling took.
      memory: bytes that a step needs at once.
      state_bytes: bytes of the state.
    """

    def __init__(self, build: Build, batch: int, side: int, *, augments: bool = True):
        setup = _setup(build, batch, side, augments)
        mesh = mesh_of(device_grid(MeshConfig(data=1), jax.devices()[:1]))
        self._functions: Compiled = compile_training(setup, mesh)
        self._batches = [
            put_batch(rows, self._functions.batch) for rows in host_batches(batch, side, 1)
        ]
        began = time.perf_counter()
        compiled = self._functions.train.lower(self._functions.target, self._batches[0]).compile()
        self.compile_seconds = time.perf_counter() - began
        usage = compiled.memory_analysis()
        self.memory = usage.argument_size_in_bytes + usage.temp_size_in_bytes
        self.memory += usage.output_size_in_bytes - usage.alias_size_in_bytes
        self.state_bytes = usage.alias_size_in_bytes
        self._run = compiled
        self._state = self._functions.init()

    def seconds(self, steps: int, batches: list[dict[str, np.ndarray]] | None = None) -> float:
        """Seconds a step, over several steps.

        Args:
          steps: how many.
          batches: of which each step gets another one, put on the device while the step before
            runs; None runs all steps on one that is there.
        """
        began = time.perf_counter()
        current = self._batches[0]
        for step in range(steps):
            self._state, scalars = self._run(self._state, current)
            if batches is not None:
                current = put_batch(batches[step % len(batches)], self._functions.batch)
        jax.block_until_ready(scalars)
        return (time.perf_counter() - began) / steps


def _setup(build: Build, batch: int, side: int, augments: bool) -> StepSetup:
    preset = imagenet_preset("nat_tiny")
    config = dataclasses.replace(
        preset,
        batch_size=batch,
        data=dataclasses.replace(preset.data, image_size=side),
        augment=preset.augment if augments else AugmentConfig(),
    )
    return step_of(Classification(config, IMAGENET, split_network(build)), IMAGENET_IMAGES)


def host_batches(batch: int, side: int, count: int) -> list[dict[str, np.ndarray]]:
    """Batches of noise."""
    rng = np.random.default_rng(0)
    return [
        {
            "image": rng.integers(0, 256, (batch, side, side, 3), np.uint8),
            "label": rng.integers(0, 1000, batch, np.int32),
        }
        for _ in range(count)
    ]


def measure(
    chosen: list[Variant], batch: int, side: int, rounds: int, steps: int, *, augments: bool = True
) -> list[Row]:
    """Compile all, then measure all by turns; a row a variant."""
    programs: dict[tuple[str, bool], Step] = {}
    for variant in chosen:
        for attends, build in ((True, variant.build), (False, variant.build_without)):
            programs[variant.name, attends] = Step(build, batch, side, augments=augments)
            seconds = programs[variant.name, attends].compile_seconds
            print(f"{variant.name}, attention {attends}: compiled in {seconds:.0f} s", flush=True)
    batches = host_batches(batch, side, 4)
    runs = {(name, attends, fed) for name, attends in programs for fed in (attends, False)}
    times: dict[tuple[str, bool, bool], list[float]] = {run: [] for run in sorted(runs)}
    for turn in range(rounds + 1):
        for (name, attends, fed), found in times.items():
            seconds = programs[name, attends].seconds(steps, batches if fed else None)
            if turn:  # the first settles memory and caches
                found.append(seconds)
    return [_row(variant.name, programs, times, batch) for variant in chosen]


def _row(name: str, programs: dict[Any, Step], times: dict[Any, list[float]], batch: int) -> Row:
    full, without = times[name, True, False], times[name, False, False]
    seconds = statistics.median(full)
    low, _, high = statistics.quantiles(full, n=4)
    # Rounds are pairs: what slows the machine down for a while slows both.
    saved = statistics.median(1 - b / a for a, b in zip(full, without, strict=True))
    waits = (a - b for a, b in zip(times[name, True, True], full, strict=True))
    step = programs[name, True]
    return {
        "model": name,
        "ms": seconds * 1e3,
        "spread_ms": (high - low) / 2 * 1e3,
        "images_per_second": batch / seconds,
        "attention_share": saved,
        "attention_ms": saved * seconds * 1e3,
        "input_wait_ms": statistics.median(waits) * 1e3,
        "memory_bytes": step.memory,
        "attention_memory_bytes": step.memory - programs[name, False].memory,
        "state_bytes": step.state_bytes,
        "compile_seconds": step.compile_seconds,
    }


def document(result: dict[str, Any]) -> str:
    """The results in Markdown."""
    where = result["environment"]
    lines = [
        f"# The training step beside Swin's: {where['device']}\n",
        f"    {where['command']}\n",
        f"Measured on {where['date']} on {where['device']} ({where['note']}) with jax"
        f" {where['jax']}, natjax {where['natjax']}: {where['batch']} images of"
        f" {where['image_size']}x{where['image_size']} a step, {where['dtype']},"
        f" {where['rounds']} rounds by turns. `benchmarks/train_step.py` says how. In 'swin_tiny,"
        " our op' the windows of shifted blocks are not masked: a bound, not Swin.\n",
        "| model | ms a step | images/s | attention | attention, ms | input wait, ms | memory, MB"
        " | of that attention, MB | state, MB |",
        "| --- " * 9 + "|",
    ]
    lines += [
        f"| {row['model']} | {row['ms']:.0f} ± {row['spread_ms']:.0f} |"
        f" {row['images_per_second']:.2f} | {row['attention_share']:.0%} |"
        f" {row['attention_ms']:.0f} | {row['input_wait_ms']:.1f} |"
        f" {row['memory_bytes'] / 1e6:.0f} | {row['attention_memory_bytes'] / 1e6:.0f} |"
        f" {row['state_bytes'] / 1e6:.0f} |"
        for row in result["rows"]
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Parse the command line, measure, write."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.train_step",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1, help="steps a round")
    parser.add_argument("--only", nargs="+", help="names of models")
    parser.add_argument("--note", default="idle", help="what else the machine was doing")
    parser.add_argument("--tiny", action="store_true", help="a few blocks, no augmentation")
    parser.add_argument("--json", type=pathlib.Path, help="write the results here instead")
    options = parser.parse_args()
    if options.tiny and options.json is None:
        parser.error("--tiny needs --json, to keep its numbers out of the results")
    platform = jax.default_backend()
    dtype = options.dtype or ("float32" if platform == "cpu" else "bfloat16")
    chosen = variants(dtype, options.tiny)
    chosen = [v for v in chosen if options.only is None or v.name in options.only]
    sizes = options.batch, options.image_size, options.rounds, options.steps
    rows = measure(chosen, *sizes, augments=not options.tiny)
    result = {
        "environment": {
            "date": datetime.date.today().isoformat(),
            "device": jax.devices()[0].device_kind,
            "note": options.note,
            "jax": jax.__version__,
            "natjax": natjax.__version__,
            "dtype": jnp.dtype(dtype).name,
            "batch": options.batch,
            "image_size": options.image_size,
            "rounds": options.rounds,
            "command": " ".join(["python -m benchmarks.train_step", *sys.argv[1:]]),
        },
        "rows": rows,
    }
    path = options.json or RESULTS / f"train_step_{platform}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    path.with_suffix(".md").write_text(document(result))
    print(document(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
