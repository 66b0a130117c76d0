"""A run from its first step to its last, or from its newest checkpoint on."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from natjax.train import console
from natjax.train.checkpoint.checkpointer import CheckpointWriter, items_state, restore, state_items
from natjax.train.checkpoint.run_folder import RunFolder, claim
from natjax.train.cluster import processes
from natjax.train.cluster.failure import end_together
from natjax.train.cluster.preemption import StopRequestedError, StopSignals
from natjax.train.config.serialization import to_json
from natjax.train.config.settings import TrainConfig
from natjax.train.data.datasets import with_classes
from natjax.train.data.pipeline import train_batches
from natjax.train.engine.evaluate import Evaluation, best_of, evaluate
from natjax.train.engine.finite import FiniteGuard, HostScalars, all_finite
from natjax.train.engine.position import Position, read_position
from natjax.train.engine.sharding import put_batch
from natjax.train.engine.state import TrainState
from natjax.train.engine.step import Scalars
from natjax.train.engine.trainer import Trainer, build_trainer
from natjax.train.engine.warm_start import InitialWeights, read_initial, start_from
from natjax.train.errors import Stopped, TrainingError
from natjax.train.reporting.metrics import MetricsWriter, Sink, drop_after
from natjax.train.reporting.mfu import image_flops, utilisation
from natjax.train.reporting.pictures import write_pictures
from natjax.train.reporting.profiling import StepTrace
from natjax.train.reporting.progress import ProgressDisplay, Shown, Throughput, format_seconds
from natjax.train.reporting.summary import run_summary
from natjax.train.reporting.tensorboard import TensorBoard, require_tensorboard
from natjax.train.reporting.wandb import Wandb, require_wandb

Evaluations = dict[str, Evaluation]
# Steps that may be under way at once: enough to keep the devices busy, few enough to stop soon.
_UNDER_WAY = 2


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
      TrainingError: the loss is not finite, or data workers die.
      Stopped: a signal asked to stop; all is saved.
    """
    began = time.monotonic()
    config = dataclasses.replace(config, data=with_classes(config.data))
    if config.tensorboard:
        require_tensorboard()
    if config.wandb:
        require_wandb()
    processes.start(config.distributed)
    with end_together():
        trainer = build_trainer(config)
        initial = read_initial(trainer, RunFolder(path).checkpoints)  # before anything is written
        with claim(path, config) as folder:
            evaluations = _train(trainer, folder, initial)
            processes.wait("end of the run")
    _tell_end(trainer, folder, evaluations, time.monotonic() - began)
    return evaluations


def _train(trainer: Trainer, folder: RunFolder, initial: InitialWeights | None) -> Evaluations:
    first = processes.index() == 0
    state, position = _start(trainer, folder, initial)
    if first:
        drop_after(folder.metrics, int(state.step), evaluated=position.evaluated)
    with _metrics(trainer.config, folder, first) as metrics, StopSignals() as signals:
        state, evaluations = _Run(trainer, folder, metrics, signals, position).finish(state)
    write_pictures(trainer, state, folder, best_of(evaluations))
    return evaluations


@contextlib.contextmanager
def _metrics(config: TrainConfig, folder: RunFolder, writes: bool) -> Iterator[MetricsWriter]:
    sinks: list[Sink] = []
    if writes and config.tensorboard:
        sinks.append(TensorBoard(folder.tensorboard, folder.metrics))
    if writes and config.wandb:
        sinks.append(Wandb(config.wandb, folder.path, to_json(config)))
    with contextlib.closing(MetricsWriter(folder.metrics, writes, sinks)) as writer:
        yield writer


def _start(
    trainer: Trainer, folder: RunFolder, initial: InitialWeights | None
) -> tuple[TrainState, Position]:
    target = trainer.compiled.target
    restored = restore(folder.checkpoints, state_items(target), set_aside=folder.damaged)
    if restored is not None:
        console.say(f"Resuming {folder.path} after step {restored.step}/{trainer.total_steps}")
        return items_state(restored.items), read_position(restored.meta)
    console.say(run_summary(trainer))
    state = trainer.compiled.init()
    if initial is None:
        return state, Position()
    console.say(f"Starting from {initial.report}")
    return start_from(state, initial), Position()


class _Run:
    """The loop's variables beside the state."""

    def __init__(
        self,
        trainer: Trainer,
        folder: RunFolder,
        metrics: MetricsWriter,
        signals: StopSignals,
        position: Position,
    ):
        self._trainer, self._config, self._total = trainer, trainer.config, trainer.total_steps
        self._folder, self._metrics, self._signals = folder, metrics, signals
        self._guard = FiniteGuard(trainer.config, position.skipped)
        self._throughput = Throughput(trainer.config.batch_size)
        self._flops = image_flops(trainer.config, trainer.spec)
        self._evaluated = position.evaluated
        self._evaluations: Evaluations = {}
        # Scalars of the steps since the last line: still on the devices, and fetched.
        self._flying: list[Scalars] = []
        self._window: list[HostScalars] = list(position.window)

    def finish(self, state: TrainState) -> tuple[TrainState, Evaluations]:
        """Take all steps that are left, then evaluate the last weights."""
        done = int(state.step)
        with CheckpointWriter(self._folder.checkpoints, self._config.checkpoint) as checkpoints:
            self._catch_up(state, done, checkpoints)
            if done < self._total:
                state = self._take_steps(state, done, checkpoints)
        return state, self._evaluations

    def _take_steps(
        self, state: TrainState, done: int, checkpoints: CheckpointWriter
    ) -> TrainState:
        with (
            contextlib.closing(
                train_batches(self._trainer.train_data, self._config.data, done)
            ) as batches,
            ProgressDisplay(self._total, done) as display,
            StepTrace(self._config.profile, self._folder.profile, processes.index() == 0) as trace,
            end_together(),  # before workers and checkpoints are waited for
        ):
            for step in range(done + 1, self._total + 1):
                batch = put_batch(next(batches), self._trainer.compiled.batch)
                trace.before_step()
                state, scalars = self._trainer.compiled.train(state, batch)
                trace.after_step(step, scalars)
                self._keep(scalars)
                if self._end_step(state, step, checkpoints, display):
                    checkpoints.wait()
                    raise Stopped(self._signals.number, step)
        return state

    def _end_step(
        self, state: TrainState, step: int, checkpoints: CheckpointWriter, display: ProgressDisplay
    ) -> bool:
        """Log, evaluate and save what is due after `step`; return whether to stop."""
        stop = self._signals.due()
        logs = self._due(step, self._config.log_every)
        if stop or logs:
            self._fetch(step, checkpoints)
        if logs:
            self._log(step, display)
        score = None
        self._evaluated = not self._due(step, self._config.eval_every)
        if not self._evaluated and not stop:
            with contextlib.suppress(StopRequestedError):
                score = self._evaluate_and_log(state, step)
            stop = not self._evaluated
        if stop or self._due(step, self._config.checkpoint.every):
            self._save(checkpoints, state, score)
        return stop

    def _due(self, step: int, every: int) -> bool:
        return step % every == 0 or step == self._total

    def _catch_up(self, state: TrainState, done: int, checkpoints: CheckpointWriter) -> None:
        """Evaluate now where that was put off, or where nothing else is left to do."""
        try:
            if not self._evaluated:
                score = self._evaluate_and_log(state, done)
                # A checkpoint that is there only because of the stop never counts as best.
                if self._due(done, self._config.checkpoint.every):
                    checkpoints.rate(done, score)
            elif done >= self._total:
                console.say("All steps are done already; evaluating again")
                self._evaluate(state)
        except StopRequestedError:
            raise Stopped(self._signals.number, done) from None

    def _keep(self, scalars: Scalars) -> None:
        self._flying.append(scalars)
        if len(self._flying) > _UNDER_WAY:
            jax.block_until_ready(self._flying[-1 - _UNDER_WAY])

    def _fetch(self, step: int, checkpoints: CheckpointWriter) -> None:
        """Bring the scalars of all steps up to `step` here, and look at them."""
        scalars = jax.device_get(self._flying)
        self._flying.clear()
        self._guard.check(scalars, step - len(scalars) + 1, checkpoints.newest)
        self._window += scalars

    def _save(self, checkpoints: CheckpointWriter, state: TrainState, score: float | None) -> None:
        began = time.monotonic()
        if not all_finite(state):
            raise TrainingError(
                f"the weights after step {int(state.step)} are not finite numbers;"
                f" {checkpoints.newest()}. Try a lower --optimizer.learning-rate in another --run"
            )
        position = Position(
            window=self._window, evaluated=self._evaluated, skipped=self._guard.in_a_row
        )
        meta = {"config": to_json(self._config), "position": position.to_json()}
        checkpoints.save(state, meta, score)
        self._throughput.exclude(time.monotonic() - began)

    def _log(self, step: int, display: ProgressDisplay) -> None:
        good = [values for values in self._window if not values.get("skipped")]
        line = {name: _mean(good, name) for name in ("loss", "accuracy", "grad_norm")}
        skipped = len(self._window) - len(good)
        rate, learning_rate = self._throughput.rate(step), float(self._window[-1]["learning_rate"])
        devices = self._trainer.compiled.batch.mesh.devices.flat
        mfu = utilisation(self._flops, rate, devices[0].device_kind, len(devices))
        self._throughput.start(step)
        self._metrics.write(
            kind="train",
            step=step,
            epoch=self._epoch(step),
            **line,
            learning_rate=learning_rate,
            **({"skipped": skipped} if self._config.on_nan == "skip" else {}),
            images_per_second=round(rate, 1),
            **({"mfu": round(mfu, 4)} if mfu is not None else {}),
        )
        self._window = []
        shown = Shown(
            step=step,
            epoch=self._epoch(step),
            loss=line["loss"],
            accuracy=line["accuracy"],
            learning_rate=learning_rate,
            rate=rate,
            mfu=mfu,
            left=self._throughput.seconds_left(step, self._total),
            skipped=skipped,
        )
        display.show(shown)
        if skipped:
            console.warn(
                f"{skipped} updates up to step {step} were left out: the loss or its gradient was"
                " not finite"
            )

    def _epoch(self, step: int) -> float:
        return round(step * self._config.batch_size / self._trainer.train_images, 4)

    def _evaluate_and_log(self, state: TrainState, step: int) -> float:
        """Evaluate, and return the score that decides about the best checkpoint."""
        began = time.monotonic()
        self._evaluate(state)
        epoch = self._epoch(step)
        for weights, result in self._evaluations.items():
            self._metrics.write(
                kind="eval", step=step, epoch=epoch, weights=weights, **result.scores()
            )
        self._evaluated = True
        self._throughput.exclude(time.monotonic() - began)
        text = f"step {step:>6}  test accuracy {self._evaluations['raw'].top1:.2%}"
        if "ema" in self._evaluations:
            text += f", averaged weights {self._evaluations['ema'].top1:.2%}"
        console.say(text)
        return best_of(self._evaluations).top1

    def _evaluate(self, state: TrainState) -> None:
        compiled, batches = self._trainer.compiled, self._trainer.test_data
        weights = {"raw": state.params} | ({"ema": state.ema} if state.ema else {})
        self._evaluations = {
            name: evaluate(compiled, params, self._signals.watch(batches))
            for name, params in weights.items()
        }


def _mean(steps: list[HostScalars], name: str) -> float | None:
    """Mean over steps; None where every one was left out."""
    if not steps:
        return None
    return float(np.mean([values[name] for values in steps], dtype=np.float64))


def _tell_end(trainer: Trainer, folder: RunFolder, results: Evaluations, seconds: float) -> None:
    for weights, result in results.items():
        name = {"raw": "last weights", "ema": "averaged weights"}[weights]
        console.say(
            f"{name}: top-1 {result.top1:.2%}, top-5 {result.top5:.2%}, {result.images} images"
        )
    console.say(f"{trainer.total_steps} steps, {format_seconds(seconds)} in this process")
    for name in ("curves", "predictions", "confusion", "metrics", "checkpoints"):
        console.say(f"{name + ':':<13}{getattr(folder, name)}")
