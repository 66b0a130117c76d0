"""A run from its first step to its last, or from its newest checkpoint on."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from natjax.train import console
from natjax.train.checkpoint.checkpointer import CheckpointWriter, list_steps, restore
from natjax.train.checkpoint.run_folder import RunFolder, open_run_folder
from natjax.train.cluster import processes
from natjax.train.cluster.failure import end_together
from natjax.train.cluster.preemption import StopRequestedError, StopSignals
from natjax.train.config.serialization import to_json
from natjax.train.engine.evaluate import best_of, closed, evaluate
from natjax.train.engine.finite import FiniteGuard, all_finite
from natjax.train.engine.report import tell_end, write_pictures, write_report
from natjax.train.engine.sharding import put_batch
from natjax.train.engine.state import TrainState, state_of
from natjax.train.engine.step import Scalars
from natjax.train.engine.summary import run_summary
from natjax.train.engine.task import InitialWeights, Scores, Task
from natjax.train.engine.trainer import Trainer, build_trainer
from natjax.train.engine.training_log import TrainingLog
from natjax.train.engine.warm_start import read_initial, start_from
from natjax.train.errors import Stopped, TrainingError
from natjax.train.reporting.metrics import MetricsWriter, Sink, drop_after
from natjax.train.reporting.profiling import StepTrace
from natjax.train.reporting.progress import ProgressDisplay
from natjax.train.reporting.tensorboard import TensorBoard, require_tensorboard
from natjax.train.reporting.wandb import Wandb, require_wandb

# Steps that may be under way at once: enough to keep the devices busy, few enough to stop soon.
_UNDER_WAY = 2


def train(task: Task[Any], path: Path, settings: dict[str, Any] | None = None) -> dict[str, Scores]:
    """Train until the configured number of steps is done, resuming where `path` holds a run.

    Ways to start, in this order: from the newest sound checkpoint in `path`; from the weights that
    the configuration names as `init`; from scratch.

    Args:
      task: What to train.
      path: The run folder.
      settings: What identifies the run and is saved with it: JSON values that hold the
        configuration; by default that alone.

    Returns:
      Scores of the last weights, by ``"raw"`` and, where an average is kept, ``"ema"``, over all
      held-out examples.

    Raises:
      UserError: wrong configuration, data, or folder, or a full disk.
      TrainingError: the loss is not finite, or data workers die.
      Stopped: a signal asked to stop; all is saved.
    """
    began = time.monotonic()
    config = task.config
    settings = to_json(config) if settings is None else settings
    if config.tensorboard:
        require_tensorboard()
    if config.wandb:
        require_wandb()
    processes.start(config.distributed)
    with end_together():
        trainer = build_trainer(task)
        # Before anything is written, and only where it is needed.
        fresh = not list_steps(RunFolder(path).checkpoints)
        initial = read_initial(trainer) if fresh else None
        with open_run_folder(path, settings, config.CONTINUING) as folder:
            results, pictures = _train(trainer, folder, settings, initial)
            report = None
            if processes.index() == 0:
                report = write_report(trainer, folder, results, pictures, settings)
            processes.wait("end of the run")
    tell_end(trainer, folder, results, pictures, report, time.monotonic() - began)
    return results


def _train(
    trainer: Trainer, folder: RunFolder, settings: dict[str, Any], initial: InitialWeights | None
) -> tuple[dict[str, Scores], dict[str, str]]:
    first = processes.index() == 0
    state, log = _start(trainer, folder, initial)
    if first:
        drop_after(folder.metrics, int(state.step), evaluated=log.evaluated)
    with _metrics(trainer, folder, settings, first) as metrics, StopSignals() as signals:
        run = _Run(trainer, folder, settings, metrics, signals, log)
        state, results = run.finish(state)
    return results, write_pictures(trainer, state, folder, best_of(results))


@contextlib.contextmanager
def _metrics(
    trainer: Trainer, folder: RunFolder, settings: dict[str, Any], writes: bool
) -> Iterator[MetricsWriter]:
    sinks: list[Sink] = []
    config, leave_out = trainer.config, [trainer.task.unit]
    if writes and config.tensorboard:
        sinks.append(TensorBoard(folder.tensorboard, folder.metrics, leave_out))
    if writes and config.wandb:
        sinks.append(Wandb(config.wandb, folder.path, settings, leave_out))
    with contextlib.closing(MetricsWriter(folder.metrics, writes, sinks)) as writer:
        yield writer


def _start(
    trainer: Trainer, folder: RunFolder, initial: InitialWeights | None
) -> tuple[TrainState, TrainingLog]:
    items = trainer.compiled.target.items()
    restored = restore(folder.checkpoints, items, set_aside=folder.damaged)
    if restored is not None:
        console.say(f"Resuming {folder.path} after step {restored.step}/{trainer.total_steps}")
        return state_of(restored.items), TrainingLog(trainer, restored.meta)
    console.say(run_summary(trainer))
    state = trainer.compiled.init()
    if initial is not None:
        console.say(f"Starting from {initial.report}")
        state = start_from(state, initial)
    return state, TrainingLog(trainer, {})


class _Run:
    """The loop's variables beside the state."""

    def __init__(
        self,
        trainer: Trainer,
        folder: RunFolder,
        settings: dict[str, Any],
        metrics: MetricsWriter,
        signals: StopSignals,
        log: TrainingLog,
    ):
        self._trainer, self._config, self._total = trainer, trainer.config, trainer.total_steps
        self._folder, self._settings = folder, settings
        self._metrics, self._signals, self._log = metrics, signals, log
        self._guard = FiniteGuard(trainer.config, log.skipped_in_a_row)
        self._results: dict[str, Scores] = {}
        # Scalars of the steps since the last line that are still on the devices.
        self._pending: list[Scalars] = []

    def finish(self, state: TrainState) -> tuple[TrainState, dict[str, Scores]]:
        """Take all steps that are left, then evaluate the last weights."""
        done = int(state.step)
        with CheckpointWriter(self._folder.checkpoints, self._config.checkpoint) as checkpoints:
            self._catch_up(state, done, checkpoints)
            if done < self._total:
                state = self._take_steps(state, done, checkpoints)
        return state, self._results

    def _take_steps(
        self, state: TrainState, done: int, checkpoints: CheckpointWriter
    ) -> TrainState:
        trainer, profile = self._trainer, self._config.profile
        with (
            closed(trainer.task.train_batches(done, trainer.host)) as batches,
            ProgressDisplay(self._total, done) as display,
            StepTrace(profile, self._folder.profile, processes.index() == 0) as trace,
            end_together(),  # before workers and checkpoints are waited for
        ):
            for step in range(done + 1, self._total + 1):
                with self._log.throughput.waiting():
                    rows = next(batches)
                batch = put_batch(rows, trainer.compiled.batch)
                trace.before_step()
                state, scalars = trainer.compiled.train(state, batch)
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
            self._log.write(step, self._metrics, display)
        score = None
        self._log.evaluated = not self._due(step, self._config.eval_every)
        if not self._log.evaluated and not stop:
            with contextlib.suppress(StopRequestedError):
                score = self._evaluate_and_log(state, step)
            stop = not self._log.evaluated
        if stop or self._due(step, self._config.checkpoint.every):
            self._save(checkpoints, state, score)
        return stop

    def _due(self, step: int, every: int) -> bool:
        return step % every == 0 or step == self._total

    def _catch_up(self, state: TrainState, done: int, checkpoints: CheckpointWriter) -> None:
        """Evaluate now where that was put off, or where nothing else is left to do."""
        try:
            if not self._log.evaluated:
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
        self._pending.append(scalars)
        if len(self._pending) > _UNDER_WAY:
            jax.block_until_ready(self._pending[-1 - _UNDER_WAY])

    def _fetch(self, step: int, checkpoints: CheckpointWriter) -> None:
        """Bring the scalars of all steps up to `step` here, and look at them."""
        scalars = jax.device_get(self._pending)
        self._pending.clear()
        self._guard.check(scalars, step - len(scalars) + 1, checkpoints.newest)
        self._log.add(scalars)

    def _save(self, checkpoints: CheckpointWriter, state: TrainState, score: float | None) -> None:
        began = time.monotonic()
        if not all_finite(state):
            raise TrainingError(
                f"the weights after step {int(state.step)} are not finite numbers;"
                f" {checkpoints.newest()}. Try a lower --optimizer.learning-rate in another --run"
            )
        self._log.skipped_in_a_row = self._guard.in_a_row
        meta = {"config": self._settings, "log": self._log.to_json()}
        checkpoints.save(int(state.step), state.items(), meta, score)
        self._log.throughput.exclude(time.monotonic() - began)

    def _evaluate_and_log(self, state: TrainState, step: int) -> float:
        """Evaluate, and return the score that decides about the best checkpoint."""
        began = time.monotonic()
        self._evaluate(state)
        self._log.write_scores(step, self._results, self._metrics)
        self._log.throughput.exclude(time.monotonic() - began)
        return best_of(self._results).rank

    def _evaluate(self, state: TrainState) -> None:
        trainer = self._trainer
        batches = self._signals.watch(trainer.task.eval_batches(trainer.host))
        self._results = evaluate(trainer.task, trainer.compiled, state.weights(), batches)
