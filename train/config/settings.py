"""Settings that runs of all tasks share: frozen dataclasses and the rules between their values.

A task adds its own by a subclass of `RunConfig`. Nothing heavy is imported here, so that help texts
and presets come without waiting for JAX.
"""

import dataclasses
from pathlib import Path
from typing import ClassVar, Literal

from natjax.train.config.continuing import FIXED, FREE, PLACE, ROUNDING, Rule, Rules
from natjax.train.config.rules import require, require_multiple
from natjax.train.files import require_local

_PARTS = "equal up to rounding, and to what is drawn for each part: stochastic depth, dropout"
_LENGTH = "from here on the learning rate is that of a run of the new length"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A network of natjax, or the backbone of a larger one.

    Attributes:
      name: A name that `natjax models` lists.
      kernel_size: Side of the attention window; by default as published.
      dilations: Dilation of every block, by default as published: joined by commas, with a slash
        between levels, as in 1,8,1/1,4,1,4/1,2,1,2,1,2/1,1,1,1,1.
      drop_path: Chance, in [0, 1), that the last block of a training image is skipped.
      dtype: Type of the computation; parameters are always float32.
      remat: Recompute each block in the backward pass: less memory, about a third more time.
      init: Initial kernels: as published (standard deviation 0.02, right for hundreds of channels),
        or scaled to unit gain by the root of the inputs, which lets narrow networks learn sooner.
      layer_decay: Layer-wise decay of the learning rate, in (0, 1], for fine-tuning: what comes
        after the backbone has the whole rate, the last block this times it, and each block before
        this times the rate of the next.
      frozen: Leave the backbone as `init` gives it, and train only what comes after it.
      gradients: Type in which the kernels of a bfloat16 backbone get their gradients, which devices
        exchange and add up. bfloat16 halves what they exchange, and rounds for every device.
    """

    name: str = "nat_micro"
    kernel_size: int | None = None
    dilations: str | None = None
    drop_path: float = 0.0
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False
    init: Literal["published", "fan_in"] = "published"
    layer_decay: float = 1.0
    frozen: bool = False
    gradients: Literal["float32", "bfloat16"] = "float32"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The data set and how it is read.

    Attributes:
      name: Name of the data set.
      dir: Folder with the original files, for data sets that need any.
      prepared_dir: Where prepared sets are kept; by default $NATJAX_DATA or ~/.cache/natjax/data.
      threads: Threads that decode and augment.
      workers: Processes that decode and augment; 0 does it in this one.
    """

    name: str
    dir: Path | None = None
    prepared_dir: Path | None = None
    threads: int = 2
    workers: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with a warm-up and then a schedule.

    Attributes:
      learning_rate: The peak, reached when the warm-up ends.
      schedule: What follows the warm-up: half a cosine; the peak throughout; a power of the share
        of steps that is left (poly); or the peak times `step_factor` for each of `step_epochs` that
        has passed.
      final_learning_rate: Where cosine and poly end, and what the cooldown has.
      warmup_learning_rate: Where the warm-up, a line to the peak, starts.
      warmup_ratio: Where given, the warm-up multiplies the schedule instead, by a factor that grows
        along a line from this to 1.
      warmup_steps: Steps of the warm-up; 0 starts at the peak.
      warmup_epochs: The same in epochs; replaces `warmup_steps` where given.
      decay_from_start: Count cosine and poly from step 0: they go on from where they would be
        without a warm-up, a little below the peak. Else they start when the warm-up ends.
      cooldown_epochs: Last epochs of the run, at the final rate.
      shorten: Shorten warm-up and cooldown, to a tenth of the run each, where they leave less than
        half of it. On the command line, where nothing is said of either, this is so.
      power: Of poly.
      step_epochs: Epochs after which the rate falls.
      step_factor: By what it falls.
      weight_decay: Decoupled decay of matrices and kernels; what else is decayed, the task says.
      decay_bias_tables: Whether the relative position biases are decayed too.
      beta1: Decay of the first moment.
      beta2: Decay of the second moment.
      eps: Added to the root of the second moment.
      clip_norm: Largest global norm of the gradient; None leaves it alone.
    """

    learning_rate: float = 1e-3
    schedule: Literal["cosine", "constant", "poly", "steps"] = "cosine"
    final_learning_rate: float = 1e-5
    warmup_learning_rate: float = 0.0
    warmup_ratio: float | None = None
    warmup_steps: int = 50
    warmup_epochs: float | None = None
    decay_from_start: bool = False
    cooldown_epochs: float = 0.0
    shorten: bool = False
    power: float = 1.0
    step_epochs: tuple[float, ...] = ()
    step_factor: float = 0.1
    weight_decay: float = 0.05
    decay_bias_tables: bool = False
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    clip_norm: float | None = 5.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices; the batch is split over all of them, parameters over `fsdp`.

    Attributes:
      data: Groups of devices that hold a copy of the parameters each; by default as many as there
        are devices for, of all hosts. A CPU is one device unless a number is given.
      fsdp: Devices in a group, among which parameters and optimizer state are split.
    """

    data: int | None = None
    fsdp: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistributedConfig:
    """Processes that train together, mostly one a host, each started with the same command.

    SLURM, Open MPI, Cloud TPUs and indexed Kubernetes jobs tell by themselves; elsewhere give all
    three, or the environment variables JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
    JAX_PROCESS_ID. The coordinator may be given alone to SLURM and Open MPI, where theirs is taken
    or out of reach. `processes=1` trains alone wherever it is.

    Attributes:
      coordinator: HOST:PORT of process 0, as the others reach it.
      processes: How many processes there are.
      process: Which of them this is, counted from 0.
      timeout: Seconds to wait for the others at the start.
    """

    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None
    timeout: int = 300


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When to save and what to keep.

    Attributes:
      every: Steps between checkpoints; a multiple of `log_every`.
      keep_latest: Newest checkpoints kept; with 2 or more a damaged one has a predecessor.
      keep_best: Best checkpoints kept besides, by the task's score of the averaged weights.
    """

    every: int = 100
    keep_latest: int = 2
    keep_best: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProfileConfig:
    """A trace of some steps, for finding out where their time goes.

    Attributes:
      steps: Steps to trace; 0 traces none.
      start: Steps that this process takes before; the first ones compile.
    """

    steps: int = 0
    start: int = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What every run has, whatever its task.

    Attributes:
      optimizer: The optimizer and its schedule.
      mesh: The devices.
      distributed: The processes.
      checkpoint: The checkpoints.
      profile: A trace on request.
      compilation_cache: Keep compiled programs for the next run, in ~/.cache/natjax/compiled, or
        where JAX_COMPILATION_CACHE_DIR says. Several processes keep none unless that is set.
      tensorboard: Write the metrics for TensorBoard too, into tensorboard/ of the run folder.
      wandb: Project of Weights & Biases that the metrics go to as well. The rest is up to W&B's own
        variables, such as WANDB_ENTITY and WANDB_MODE=offline.
      batch_size: Examples a step, over all devices and hosts.
      accumulate: Parts of a batch that are computed one after the other, to save memory; the
        gradient is that of the whole.
      epochs: Passes over the training examples, cooldown included.
      steps: Steps in all; replaces `epochs` where given.
      log_every: Steps between two lines of metrics.
      eval_every: Steps between two evaluations; a multiple of `checkpoint.every`.
      ema_decay: Decay a step of the averaged weights, in [0, 1); None keeps no average.
      ema_warmup: Let the decay grow from 0.1, so that the average forgets the initial weights.
      on_nan: When the loss or its gradient is not finite: stop, or skip that update and go on.
      max_skipped: Updates in a row that may be skipped; one more stops the run.
      seed: Seed of initialisation, data order, augmentation and stochastic depth.
      init: Weights to start from: a file that `natjax convert` reads, a URL, or the name of
        published weights of the model, such as imagenet1k. What is of another size, such as the
        classifier of other classes, is drawn anew; position biases are resized.
      run: Run folder, of this machine or of mounted storage; by default runs/PRESET.
    """

    # What becomes of each setting when a run is continued with another value; a task adds its own,
    # but for sections "model" and "data", whose shared settings are here.
    CONTINUING: ClassVar[Rules] = {
        "model": FIXED,
        "model.remat": ROUNDING,
        "data": FIXED,
        "data.dir": FREE,
        "data.prepared_dir": FREE,
        "data.threads": FREE,
        "data.workers": FREE,
        "optimizer": FIXED,
        "mesh": ROUNDING,
        "distributed": PLACE,
        "checkpoint": FREE,
        "profile": FREE,
        "tensorboard": FREE,
        "wandb": FREE,
        "compilation_cache": FREE,
        "batch_size": FIXED,
        "accumulate": Rule(accepted=True, effect=_PARTS),
        "epochs": Rule(accepted=True, effect=_LENGTH),
        "steps": Rule(accepted=True, effect=_LENGTH),
        "log_every": FREE,
        "eval_every": FREE,
        "ema_decay": FIXED,
        "ema_warmup": FIXED,
        "on_nan": FREE,
        "max_skipped": FREE,
        "seed": FIXED,
        "init": FIXED,
        "run": PLACE,
    }

    optimizer: OptimizerConfig = OptimizerConfig()
    mesh: MeshConfig = MeshConfig()
    distributed: DistributedConfig = DistributedConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    profile: ProfileConfig = ProfileConfig()
    compilation_cache: bool = True
    tensorboard: bool = False
    wandb: str | None = None
    batch_size: int = 64
    accumulate: int = 1
    epochs: float = 10.0
    steps: int | None = None
    log_every: int = 20
    eval_every: int = 100
    ema_decay: float | None = 0.99
    ema_warmup: bool = True
    on_nan: Literal["stop", "skip"] = "stop"
    max_skipped: int = 10
    seed: int = 0
    init: str | None = None
    run: Path | None = None

    def __post_init__(self) -> None:
        """Check every rule that needs no data and no device.

        Raises:
          UserError: names the setting, its rule and its value.
        """
        for name in ("batch_size", "log_every", "eval_every", "epochs"):
            require(name, getattr(self, name), getattr(self, name) > 0, "positive")
        require("steps", self.steps, self.steps is None or self.steps > 0, "positive")
        for name, value in (
            ("profile.steps", self.profile.steps),
            ("profile.start", self.profile.start),
        ):
            require(name, value, value >= 0, "at least 0")
        require_local("run", self.run)
        require("seed", self.seed, 0 <= self.seed < 2**32, "in [0, 2**32)")
        decay = self.ema_decay or 0.0
        require("ema_decay", decay, 0 <= decay < 1, "in [0, 1)")
        for name, value in _integers_from_one(self):
            require(name, value, value >= 1, "at least 1")
        require_multiple("checkpoint.every", self.checkpoint.every, "log_every", self.log_every)
        require_multiple("eval_every", self.eval_every, "checkpoint.every", self.checkpoint.every)
        devices = (self.mesh.data or 1) * self.mesh.fsdp
        require_multiple("batch_size", self.batch_size, "mesh.data * mesh.fsdp", devices)
        if self.accumulate > 1:
            of = "mesh.data * mesh.fsdp * accumulate"
            require_multiple("batch_size", self.batch_size, of, devices * self.accumulate)
        _check_steps(self.optimizer)


def _check_steps(optimizer: OptimizerConfig) -> None:
    epochs = optimizer.step_epochs
    rises = list(epochs) == sorted(set(epochs)) and all(epoch > 0 for epoch in epochs)
    require("optimizer.step_epochs", epochs, rises, "rising and positive")
    needs = optimizer.schedule != "steps" or bool(epochs)
    require("optimizer.step_epochs", epochs, needs, "given for --optimizer.schedule steps")
    ratio = 1.0 if optimizer.warmup_ratio is None else optimizer.warmup_ratio
    require("optimizer.warmup_ratio", ratio, 0 <= ratio <= 1, "in [0, 1]")


def _integers_from_one(config: RunConfig) -> tuple[tuple[str, int], ...]:
    return (
        ("mesh.data", 1 if config.mesh.data is None else config.mesh.data),
        ("mesh.fsdp", config.mesh.fsdp),
        ("distributed.timeout", config.distributed.timeout),
        ("checkpoint.every", config.checkpoint.every),
        ("checkpoint.keep_latest", config.checkpoint.keep_latest),
        ("accumulate", config.accumulate),
        ("max_skipped", config.max_skipped),
    )


def check_model(model: ModelConfig, init: str | None = None) -> None:
    """Check the rules of a model's settings.

    Args:
      model: The settings.
      init: Weights that the run starts from.

    Raises:
      UserError: names the setting, its rule and its value.
    """
    require("model.drop_path", model.drop_path, 0 <= model.drop_path < 1, "in [0, 1)")
    size = 1 if model.kernel_size is None else model.kernel_size
    require("model.kernel_size", size, size >= 1, "at least 1")
    decay = model.layer_decay
    require("model.layer_decay", decay, 0 < decay <= 1, "in (0, 1]")
    learns = not model.frozen or init is not None
    require("model.frozen", model.frozen, learns, "False where --init gives no weights")
    if model.dilations is not None:
        read_dilations(model.dilations)


def read_dilations(text: str) -> tuple[tuple[int, ...], ...]:
    """Return the dilations of every level.

    Args:
      text: As in `ModelConfig.dilations`.

    Raises:
      UserError: it is something else.

    >>> read_dilations("1,8/1,4,1")
    ((1, 8), (1, 4, 1))
    """
    levels = [[part.strip() for part in level.split(",")] for level in text.split("/")]
    fits = all(part.isdecimal() and int(part) >= 1 for level in levels for part in level)
    require("model.dilations", repr(text), fits, "like 1,8,1/1,4,1,4, numbers from 1")
    return tuple(tuple(map(int, level)) for level in levels)


def check_data(data: DataConfig) -> None:
    """Check the rules of how data are read.

    Raises:
      UserError: names the setting, its rule and its value.
    """
    require("data.threads", data.threads, data.threads >= 1, "at least 1")
    require("data.workers", data.workers, data.workers >= 0, "at least 0")
    require_local("data.dir", data.dir)
    require_local("data.prepared_dir", data.prepared_dir)
