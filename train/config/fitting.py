"""What a preset says adapts to what the user says: only what he wrote himself is ever refused."""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from natjax.train.config.settings import OptimizerConfig, RunConfig

_PHASES = ("optimizer.warmup_steps", "optimizer.warmup_epochs", "optimizer.cooldown_epochs")
_SHORTENS = "optimizer.shorten"
_INTERVALS = ("log_every", "checkpoint.every", "eval_every", "steps")


def written_settings(flags: Sequence[str], file: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Return what the user has written, as text by name, such as ``{"mesh.data": "4"}``.

    Args:
      flags: Of the command line: ``--mesh.data 4`` or ``--mesh.data=4``.
      file: Settings of his file, nested.
    """
    found = dict(_flat(file or {}, ""))
    for flag, after in itertools.zip_longest(flags, flags[1:], fillvalue=""):
        if flag.startswith("--"):
            name, is_joined, value = flag[2:].partition("=")
            found[name.replace("-", "_")] = value if is_joined else after
    return found


def _flat(settings: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for name, value in settings.items():
        whole = prefix + name.replace("-", "_")
        if isinstance(value, Mapping):
            yield from _flat(value, f"{whole}.")
        else:
            yield whole, str(value)


def fitted[Config: RunConfig](preset: Config, written: Mapping[str, str]) -> tuple[Config, str]:
    """Return a preset whose intervals suit those that the user has written, and what has changed.

    Intervals must divide each other, and a run has at least one line of metrics before its last.
    Warm-up and cooldown become such that a run too short for them shortens them (see
    `fitted_optimizer`), unless he has written one of them.

    Args:
      preset: The configuration to adapt.
      written: What `written_settings` found; values that are no whole numbers do not count, as
        they are refused elsewhere.

    Returns:
      The preset, and a line for the user; empty where nothing has changed.
    """
    shortens = _SHORTENS not in written and not any(name in written for name in _PHASES)
    optimizer = dataclasses.replace(preset.optimizer, shorten=preset.optimizer.shorten or shortens)
    given = {
        name: int(written[name])
        for name in _INTERVALS
        if written.get(name, "").isdecimal() and int(written[name]) > 0
    }
    before = {
        "log_every": preset.log_every,
        "checkpoint.every": preset.checkpoint.every,
        "eval_every": preset.eval_every,
    }
    after = _intervals(before, given)
    changed = [
        f"{name} {before[name]} -> {after[name]}"
        for name in before
        if name not in given and before[name] != after[name]
    ]
    new = dataclasses.replace(
        preset,
        optimizer=optimizer,
        log_every=after["log_every"],
        checkpoint=dataclasses.replace(preset.checkpoint, every=after["checkpoint.every"]),
        eval_every=after["eval_every"],
    )
    return new, f"to suit the intervals given: {', '.join(changed)}" if changed else ""


def _intervals(preset: Mapping[str, int], given: Mapping[str, int]) -> dict[str, int]:
    """Lines of metrics divide checkpoints, and checkpoints evaluations."""
    log, save, evaluation = (given.get(name, preset[name]) for name in preset)
    if "log_every" not in given:
        most = min(log, given["steps"] // 2 or 1) if given.get("steps", log) < log else log
        written = [given[name] for name in ("checkpoint.every", "eval_every") if name in given]
        log = _divisor(math.gcd(*written), most) if written else most
    if "checkpoint.every" not in given:
        save = max(save // log, 1) * log
        if "eval_every" in given and evaluation % log == 0:
            save = log * _divisor(evaluation // log, save // log)
    if "eval_every" not in given:
        evaluation = max(evaluation // save, 1) * save
    return {"log_every": log, "checkpoint.every": save, "eval_every": evaluation}


def _divisor(number: int, most: int) -> int:
    """The largest divisor of a number that is at most another."""
    return next(d for d in range(min(number, most), 0, -1) if number % d == 0)


def fitted_optimizer(
    config: OptimizerConfig, total_steps: int, steps_per_epoch: float | None
) -> tuple[OptimizerConfig, str]:
    """Return the optimizer with warm-up and cooldown that fit the run, and what has changed.

    Where they may be shortened and leave less than half of the run between them, each becomes at
    most a tenth of the run.

    Args:
      config: The optimizer's settings.
      total_steps: Steps of the run.
      steps_per_epoch: For settings in epochs; None where there are none.

    Returns:
      The settings, and a line for the user; empty where nothing has changed.
    """
    epoch = steps_per_epoch or math.inf
    warmup, cooldown = config.warmup_steps, _steps(config.cooldown_epochs, epoch)
    if config.warmup_epochs is not None:
        warmup = _steps(config.warmup_epochs, epoch)
    if not config.shorten or 2 * (warmup + cooldown) <= total_steps:
        return config, ""
    most = total_steps // 10
    new = dataclasses.replace(
        config,
        warmup_epochs=None,
        warmup_steps=min(warmup, most),
        cooldown_epochs=min(cooldown, most) / epoch,
    )
    names = {"warm-up": (warmup, min(warmup, most)), "cooldown": (cooldown, min(cooldown, most))}
    changed = [f"{name} {old} -> {short} steps" for name, (old, short) in names.items() if old]
    return new, f"to fit {total_steps} steps: {', '.join(changed)}"


def _steps(epochs: float, steps_per_epoch: float) -> int:
    return round(epochs * steps_per_epoch) if epochs else 0
