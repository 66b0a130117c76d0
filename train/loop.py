"""A run from its first step to its last, or from its newest checkpoint on."""

import dataclasses
import math
import time
from pathlib import Path

import jax
import numpy as np

from natjax.train import console, processes
from natjax.train.checkpoint import CheckpointWriter, items_state, restore, state_items
from natjax.train.config import TrainConfig
from natjax.train.config_json import to_json
from natjax.train.data import train_batches
from natjax.train.errors import TrainingError
from natjax.train.evaluate import Evaluation, best_of, evaluate
from natjax.train.init_weights import InitialWeights, read_initial, start_from
from natjax.train.metrics import MetricsWriter, drop_after
from natjax.train.progress import ProgressDisplay, Throughput, format_seconds
from natjax.train.report import write_pictures
from natjax.train.run_folder import RunFolder, claim
from natjax.train.sharding import describe, put_batch
from natjax.train.state import TrainState
from natjax.train.step import Scalars
from natjax.train.trainer import Trainer, build_trainer

Evaluations = dict[str, Evaluation]


def train(config: TrainConfig, path: Path) -> Evaluations:
    """Train until the configured number of steps is done, resuming where `path` holds a run.

    Ways to start, in this order: from the newest sound checkpoint in `path`; from the weights that
    `config.init` names; from scratch.

    Args:
      config: The run.
      path: The run folder.

    Returns:
      Accuracy of the last weights, by ``"raw"`` and, where an average is kept, ``"ema"``, over all
      held-out images.

    Raises:
      UserError: wrong configuration, data, or folder, or a full disk.
      TrainingError: the loss is not finite.
    """
    began = time.monotonic()
    processes.start(config.distributed)
    trainer = build_trainer(config)
    first = processes.index() == 0
    initial = read_initial(trainer, RunFolder(path).checkpoints)  # before anything is written
    with claim(path, config) as folder:
        state = _start(trainer, folder, initial)
        if first:
            drop_after(folder.metrics, int(state.step))
        run = _Run(trainer, MetricsWriter(folder.metrics, first))
        try:
            state, evaluations = run.finish(state, folder)
        finally:
            run.metrics.close()
        write_pictures(trainer, state, folder, best_of(evaluations))
        processes.wait("end of the run")
    _tell_end(trainer, folder, evaluations, time.monotonic() - began)
    return evaluations


def _start(trainer: Trainer, folder: RunFolder, initial: InitialWeights | None) -> TrainState:
    target = trainer.compiled.target
    restored = restore(folder.checkpoints, state_items(target), set_aside=folder.damaged)
    if restored is not None:
        console.say(f"Resuming {folder.path} after step {restored.step}/{trainer.total_steps}")
        return items_state(restored.items)
    count = sum(math.prod(leaf.shape) for leaf in target.params.values())
    console.say(
        f"{trainer.config.model.name}: {count:,} parameters, {trainer.total_steps} steps"
        f" of {trainer.config.batch_size} images, {describe(trainer.mesh)}"
    )
    state = trainer.compiled.init()
    if initial is None:
        return state
    console.say(f"Starting from {initial.report}")
    return start_from(state, initial)


@dataclasses.dataclass
class _Run:
    """The loop's variables beside the state.

    Attributes:
      trainer: The parts of the run.
      metrics: Where lines go.
      window: Scalars of the steps since the last line, still on the devices.
    """

    trainer: Trainer
    metrics: MetricsWriter
    window: list[Scalars] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        self.throughput = Throughput(self.trainer.config.batch_size)

    def finish(self, state: TrainState, folder: RunFolder) -> tuple[TrainState, Evaluations]:
        """Take all steps that are left, then evaluate the last weights."""
        config, total = self.trainer.config, self.trainer.total_steps
        done = int(state.step)
        if done >= total:
            console.say("All steps are done already; evaluating again")
            return state, self._evaluate(state)
        batches = train_batches(self.trainer.train_data, config.data, done)
        evaluations: Evaluations = {}
        with (
            CheckpointWriter(folder.checkpoints, config.checkpoint) as checkpoints,
            ProgressDisplay(total, done) as display,
        ):
            for step in range(done + 1, total + 1):
                batch = put_batch(next(batches), self.trainer.compiled.batch)
                state, scalars = self.trainer.compiled.train(state, batch)
                self.window.append(scalars)
                if self._due(step, config.log_every):
                    self._log(step, display)
                score = None
                if self._due(step, config.eval_every):
                    evaluations = self._evaluate_and_log(state, step)
                    score = best_of(evaluations).top1
                if self._due(step, config.checkpoint.every):
                    self._save(checkpoints, state, score)
        return state, evaluations

    def _due(self, step: int, every: int) -> bool:
        return step % every == 0 or step == self.trainer.total_steps

    def _save(self, checkpoints: CheckpointWriter, state: TrainState, score: float | None) -> None:
        began = time.monotonic()
        checkpoints.save(state, {"config": to_json(self.trainer.config)}, score)
        self.throughput.exclude(time.monotonic() - began)

    def _log(self, step: int, display: ProgressDisplay) -> None:
        scalars = jax.device_get(self.window)
        self.window.clear()
        _check_finite(scalars, step - len(scalars) + 1)
        line = {
            name: float(np.mean([values[name] for values in scalars], dtype=np.float64))
            for name in ("loss", "accuracy", "grad_norm")
        }
        rate = self.throughput.rate(step)
        self.throughput.start(step)
        self.metrics.write(
            kind="train",
            step=step,
            **line,
            learning_rate=float(scalars[-1]["learning_rate"]),
            images_per_second=round(rate, 1),
        )
        left = self.throughput.seconds_left(step, self.trainer.total_steps)
        display.show(step, loss=line["loss"], accuracy=line["accuracy"], rate=rate, left=left)

    def _evaluate_and_log(self, state: TrainState, step: int) -> Evaluations:
        began = time.monotonic()
        evaluations = self._evaluate(state)
        for weights, result in evaluations.items():
            self.metrics.write(
                kind="eval", step=step, weights=weights, **dataclasses.asdict(result)
            )
        self.throughput.exclude(time.monotonic() - began)
        text = f"step {step:>6}  test accuracy {evaluations['raw'].top1:.2%}"
        if "ema" in evaluations:
            text += f", averaged weights {evaluations['ema'].top1:.2%}"
        console.say(text)
        return evaluations

    def _evaluate(self, state: TrainState) -> Evaluations:
        compiled, batches = self.trainer.compiled, self.trainer.test_data
        weights = {"raw": state.params} | ({"ema": state.ema} if state.ema else {})
        return {name: evaluate(compiled, params, batches) for name, params in weights.items()}


def _check_finite(scalars: list[dict[str, np.ndarray]], first_step: int) -> None:
    for step, values in enumerate(scalars, start=first_step):
        for name in ("loss", "grad_norm"):
            if not np.isfinite(values[name]):
                raise TrainingError(
                    f"{name} is {values[name]} at step {step}; no checkpoint after step"
                    f" {first_step - 1} is kept. Try a lower --optimizer.learning-rate in"
                    " another --run"
                )


def _tell_end(trainer: Trainer, folder: RunFolder, results: Evaluations, seconds: float) -> None:
    for weights, result in results.items():
        name = {"raw": "last weights", "ema": "averaged weights"}[weights]
        console.say(
            f"{name}: top-1 {result.top1:.2%}, top-5 {result.top5:.2%}, {result.images} images"
        )
    console.say(f"{trainer.total_steps} steps, {format_seconds(seconds)} in this process")
    for name in ("curves", "predictions", "metrics", "checkpoints"):
        console.say(f"{name + ':':<13}{getattr(folder, name)}")
