"""UPerNet's inference and training step: images a second, what its parts take, memory.

    python -m benchmarks.segment                                # natjax alone
    python -m benchmarks.segment --torch-python OTHER/python    # beside PyTorch, in turns
    python -m benchmarks.segment --write                        # into benchmarks/results/segment.md

PyTorch's side is `benchmarks/upernet_torch.py`, in a process of its own, since it need not be
installed beside JAX; both use all cores, one at a time, and have the same weights, images and label
maps. Parts are measured by themselves: the backbone from images; the heads from its maps (of
inference, the decode head alone); resizing from the heads' logits, with what makes classes of them,
or the loss. Of a step a part is its forward and backward pass; what is left is the optimizer. The
shares are those of processor time, which depends less on what else the machine does.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import json
import os
import pathlib
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import natjax
from benchmarks.measured import Measured, measured
from benchmarks.steps import ADE20K, ADE20K_IMAGES, step_of
from natjax.dense.resize import resize_bilinear
from natjax.dense.segmentation.loss import segmentation_loss
from natjax.train.config.settings import MeshConfig
from natjax.train.engine.compile import compile_training
from natjax.train.engine.sharding import device_grid, mesh_of, put_batch
from natjax.train.tasks.segmentation.recipes import RECIPES, ade20k_config
from natjax.train.tasks.segmentation.task import Segmentation
from natjax.weights.save import save_weights

ROOT = pathlib.Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "segment.md"
PARTS = ("whole", "backbone", "head", "resize")

type Calls = dict[tuple[str, str], Callable[[], Any]]
type Rows = dict[tuple[str, str, str], list[Measured]]


@dataclasses.dataclass(frozen=True)
class Problem:
    """What is measured.

    Attributes:
      model: name of the segmentor.
      pixels: images, uint8 [B, S, S, 3].
      labels: label maps, uint8 [B, S, S]; a tenth of the pixels has no label.
    """

    model: str
    pixels: np.ndarray
    labels: np.ndarray


def make_problem(model: str, batch: int, side: int) -> Problem:
    """Noise, in images and in label maps."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, len(ADE20K.class_names), (batch, side, side)).astype(np.uint8)
    labels[rng.random(labels.shape) < 0.1] = 255
    return Problem(model, rng.integers(0, 256, (batch, side, side, 3), np.uint8), labels)


class Natjax:
    """Natjax's calls, by mode and part; each compiles when it is first called.

    Attributes:
      model: the network, with random parameters.
      result: logits of the last whole inference.
    """

    def __init__(self, problem: Problem):
        self.model = natjax.create_segmentor(
            problem.model, num_classes=len(ADE20K.class_names), rngs=nnx.Rngs(0)
        )
        self.result = np.empty(0)
        self._problem = problem
        self._task = _task(problem)
        self.calls: Calls = self._inference() | self._parts_of_a_step()
        self.calls["step", "whole"] = self._step()

    def _inference(self) -> Calls:
        pixels, size = jnp.asarray(self._problem.pixels), self._problem.labels.shape[1:3]
        inputs = self._task.inputs

        @nnx.jit
        def whole(model: Any, pixels: Any) -> Any:
            logits = model(inputs(pixels))
            return logits, jnp.argmax(logits, -1)

        backbone = nnx.jit(lambda model, pixels: model.backbone.features(inputs(pixels)))
        head = nnx.jit(lambda model, maps: model.decode_head(maps))
        resize = jax.jit(lambda logits: jnp.argmax(resize_bilinear(logits, size), -1))
        maps = backbone(self.model, pixels)
        logits = head(self.model, maps)

        def keep() -> Any:
            self.result, classes = jax.block_until_ready(whole(self.model, pixels))
            return classes

        return {
            ("infer", "whole"): keep,
            ("infer", "backbone"): lambda: jax.block_until_ready(backbone(self.model, pixels)),
            ("infer", "head"): lambda: jax.block_until_ready(head(self.model, maps)),
            ("infer", "resize"): lambda: jax.block_until_ready(resize(logits)),
        }

    def _parts_of_a_step(self) -> Calls:
        graph, params, rest = nnx.split(self.model, nnx.Param, ...)
        pixels, labels = jnp.asarray(self._problem.pixels), jnp.asarray(self._problem.labels)
        task, level = self._task, self.model.config.auxiliary_level
        weights = jax.jit(task.init)()

        def of_maps(params: Any, pixels: Any) -> Any:
            model = nnx.merge(graph, params, rest)
            return _squares(model.backbone.features(task.inputs(pixels), nnx.Rngs(0)))

        def of_logits(params: Any, maps: list, statistics: Any) -> Any:
            seen = {"decode_head": maps, "auxiliary_head": maps[level]}
            options = {"rngs": nnx.Rngs(0), "train": True}
            found = [
                task.network.apply(params, statistics, x, method=name, **options)
                for name, x in seen.items()
            ]
            return _squares([logits for logits, _ in found]), [after for _, after in found]

        def loss(logits: list) -> Any:
            total, weight, scalars = segmentation_loss(*logits, labels)
            return total / weight, scalars

        @nnx.jit
        def outputs(model: Any, pixels: Any) -> Any:
            maps = model.backbone.features(task.inputs(pixels))
            return maps, [model.decode_head(maps), model.auxiliary_head(maps[level])]

        maps, logits = outputs(self.model, pixels)
        backbone = jax.jit(jax.grad(of_maps))
        head = jax.jit(jax.grad(of_logits, argnums=(0, 1), has_aux=True))
        resize = jax.jit(jax.grad(loss, has_aux=True))
        return {
            ("step", "backbone"): lambda: jax.block_until_ready(backbone(params, pixels)),
            ("step", "head"): lambda: jax.block_until_ready(head(weights[0], maps, weights[1])),
            ("step", "resize"): lambda: jax.block_until_ready(resize(logits)),
        }

    def _step(self) -> Callable[[], Any]:
        mesh = mesh_of(device_grid(MeshConfig(data=1), jax.devices()[:1]))
        functions = compile_training(step_of(self._task, ADE20K_IMAGES), mesh)
        count, side = self._problem.labels.shape[:2]
        size = np.full((count, 2), side, np.int32)
        rows = {"image": self._problem.pixels, "label": self._problem.labels, "size": size}
        batch = put_batch(rows, functions.batch)
        state = functions.init()

        def step() -> None:
            nonlocal state
            state, scalars = functions.train(state, batch)
            jax.block_until_ready((state, scalars))

        return step


def _task(problem: Problem) -> Segmentation:
    published = {recipe.model: recipe for recipe in RECIPES}
    preset = ade20k_config(published.get(problem.model, published["upernet_nat_tiny"]))
    count, side = problem.labels.shape[:2]
    return Segmentation(
        dataclasses.replace(
            preset,
            batch_size=count,
            model=dataclasses.replace(preset.model, name=problem.model, dtype="float32"),
            augment=dataclasses.replace(preset.augment, crop=side),
        ),
        ADE20K,
    )


def _squares(arrays: list) -> Any:
    return sum(jnp.sum(jnp.square(x)) for x in arrays)


class Twin:
    """PyTorch's side, in another Python."""

    def __init__(self, python: str, model: natjax.UPerNet, problem: Problem, folder: pathlib.Path):
        names = {name: str(folder / f"{name}.npy") for name in ("images", "labels")}
        np.save(names["images"], problem.pixels)
        np.save(names["labels"], problem.labels)
        save_weights(model, folder / "weights.pth", naming="official")
        shape = dataclasses.asdict(model.config)
        shape |= {"levels": model.config.levels, "auxiliary_level": model.config.auxiliary_level}
        self._process = subprocess.Popen(
            [python, "-m", "benchmarks.upernet_torch"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        self._logits = folder / "logits.npy"
        told = {"shape": shape, "weights": str(folder / "weights.pth"), **names}
        self.made = self._ask(told)

    def measure(self, mode: str, part: str) -> Measured:
        """What a call takes there."""
        return self._ask({"mode": mode, "part": part})

    def logits(self) -> np.ndarray:
        """Logits of all pixels, [B, classes, S, S]."""
        self._ask({"mode": "infer", "part": "whole", "save": str(self._logits)})
        return np.load(self._logits)

    def end(self) -> None:
        """Let the process end."""
        self._process.communicate()

    def _ask(self, told: dict[str, Any]) -> Any:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps(told) + "\n")
        stdin.flush()
        line = stdout.readline()
        if not line:
            sys.exit("PyTorch's process ended; see above")
        return json.loads(line)


@dataclasses.dataclass
class Results:
    """What was found.

    Attributes:
      rows: by mode, part and side, what each round took.
      sides: names of those that were measured.
      against: on the other side, in words; "" where there is none.
    """

    rows: Rows
    sides: list[str]
    against: str = ""


def measure_all(problem: Problem, rounds: int, torch_python: str | None) -> Results:
    """Measure all parts, by turns."""
    ours, found = Natjax(problem), Results({}, ["natjax"])
    sides: dict[str, Callable[[str, str], Measured]] = {
        "natjax": lambda mode, part: measured(ours.calls[mode, part])
    }
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        if torch_python:
            twin = Twin(torch_python, ours.model, problem, pathlib.Path(name))
            stack.callback(twin.end)
            sides["PyTorch"] = twin.measure
            found.sides.append("PyTorch")
            found.against = f", torch {twin.made['version']} ({_agreement(ours, twin)})"
        for turn in range(rounds + 1):
            for mode, part in ours.calls:
                for side, measure in sides.items():
                    took = measure(mode, part)
                    if turn:  # the first compiles, and settles memory and caches
                        found.rows.setdefault((mode, part, side), []).append(took)
    return found


def _agreement(ours: Natjax, twin: Twin) -> str:
    ours.calls["infer", "whole"]()
    logits = np.moveaxis(ours.result, -1, 1)
    apart = np.abs(logits - twin.logits()).max()
    return f"logits of up to {np.abs(logits).max():.2g} differ by {apart:.1g} at most"


_PAGE = """\
# UPerNet: inference and a training step, on CPU cores

    {command}

On {day}, {cores} cores ({note}), with
jax {jax}{against}:
{model}, 150 classes, float32, {batch} images of {side}x{side} at a time; medians of {rounds} rounds
by turns. `benchmarks/segment.py` says how. *Extra MB* is the most memory that is in use during a
call, above what is in use before it: not parameters, nor the optimizer's state. Parts may take a
little more or less alone than within the whole; what they leave of a step is the optimizer.

{table}"""
_HEADS = [
    "what",
    "by",
    "ms",
    "images/s",
    "CPU ms an image",
    "backbone",
    "heads",
    "resizing",
    "extra MB",
]


def table(found: Results, count: int) -> str:
    """The results in Markdown; ``count`` images were taken at a time."""
    lines = [_HEADS, ["---"] * len(_HEADS)]
    for mode, title in (("infer", "inference"), ("step", "training step")):
        for side in found.sides:
            whole = found.rows[mode, "whole", side]
            seconds, cpu = _median(whole, "seconds"), _median(whole, "cpu_seconds")
            parts = [_median(found.rows[mode, part, side], "cpu_seconds") for part in PARTS[1:]]
            cells = [f"{1e3 * seconds:.0f}", f"{count / seconds:.2f}", f"{1e3 * cpu / count:.1f}"]
            cells += [f"{part / cpu:.0%}" for part in parts]
            lines.append([title, side, *cells, f"{_median(whole, 'extra_bytes') / 1e6:.0f}"])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _median(found: list[Measured], name: str) -> float:
    return statistics.median(took[name] for took in found)


def main() -> None:
    """Measure what the flags say."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--torch-python", help="a Python that has PyTorch")
    parser.add_argument("--model", default="upernet_nat_tiny")
    parser.add_argument("--batch", type=int, default=2, help="images, 2 at least")
    parser.add_argument("--size", type=int, default=512, help="side of the images")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--note", default="idle", help="what else the machine was doing")
    parser.add_argument("--write", action="store_true", help="write the page of results, too")
    options = parser.parse_args()
    problem = make_problem(options.model, options.batch, options.size)
    found = measure_all(problem, options.rounds, options.torch_python)
    words = ["PYTHON" if word == options.torch_python else word for word in sys.argv[1:]]
    page = _PAGE.format(
        command=shlex.join(["python", "-m", "benchmarks.segment", *words]),
        day=datetime.date.today().isoformat(),
        cores=len(os.sched_getaffinity(0)),
        jax=jax.__version__,
        against=found.against,
        table=table(found, options.batch),
        **{name: vars(options)[name] for name in ("note", "model", "batch", "rounds")},
        side=options.size,
    )
    print(page)
    if options.write:
        RESULTS.write_text(page)


if __name__ == "__main__":
    main()
