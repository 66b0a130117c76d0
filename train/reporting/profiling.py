"""A trace of some steps, on request."""

from pathlib import Path
from typing import Any

import jax

from natjax.train import console
from natjax.train.config.settings import ProfileConfig


class StepTrace:
    """Traces the steps that are asked for. A context manager.

    Args of the constructor: which steps, the folder, and whether this process writes.
    """

    def __init__(self, config: ProfileConfig, folder: Path, writes: bool):
        self._config, self._folder = config, folder
        self._wanted = writes and config.steps > 0
        self._taken = 0
        self._running = False

    def before_step(self) -> None:
        """Begin where it is time to."""
        if self._wanted and self._taken == self._config.start:
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # it would slow down what is measured
            jax.profiler.start_trace(self._folder, profiler_options=options)
            self._running = True

    def after_step(self, step: int, results: Any) -> None:
        """End where it is time to, once `results` of `step` are there."""
        self._taken += 1
        if self._running and self._taken == self._config.start + self._config.steps:
            jax.block_until_ready(results)
            self._stop()
            console.say(
                f"traced steps {step - self._config.steps + 1} to {step} into {self._folder};"
                f" to see: pip install xprof, then xprof --logdir {self._folder}"
            )

    def _stop(self) -> None:
        self._running = False
        jax.profiler.stop_trace()

    def __enter__(self) -> "StepTrace":
        return self

    def __exit__(self, *_: object) -> None:
        if self._running:
            self._stop()
