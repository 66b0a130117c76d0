"""What defines a run: frozen dataclasses and the rules between their values.

Nothing heavy is imported here, so that help texts and presets come without waiting for JAX.
"""

import dataclasses
import math
from pathlib import Path
from typing import Literal

from natjax.train.errors import UserError
from natjax.train.files import require_local
from natjax.train.tasks.classification.augment.policy import parse_policy


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network.

    Attributes:
      name: A name that `natjax models` lists.
      drop_path: Chance, in [0, 1), that the last block of a training image is skipped.
      dtype: Type of the computation; parameters are always float32.
      remat: Recompute each block in the backward pass: less memory, about a third more time.
      init: Initial kernels: as published (standard deviation 0.02, right for hundreds of channels),
        or scaled to unit gain by the root of the inputs, which lets narrow networks learn sooner.
    """

    name: str = "nat_micro"
    drop_path: float = 0.0
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False
    init: Literal["published", "fan_in"] = "published"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The data set and how it is read.

    Attributes:
      name: Data set, as in `natjax.train.data.datasets`.
      dir: Folder with the original files, for data sets that need any.
      classes: Names of the classes of an image folder; found in it where not given.
      prepared_dir: Where prepared sets are kept; by default $NATJAX_DATA or ~/.cache/natjax/data.
      image_size: Side of the square images given to the network, in pixels.
      crop_pct: Evaluation: side of the central crop, in units of the resized short side.
      eval_interpolation: Evaluation: how images are resized.
      threads: Threads that decode and augment.
      workers: Processes that decode and augment; 0 does it in this one.
    """

    name: str
    dir: Path | None = None
    classes: tuple[str, ...] = ()
    prepared_dir: Path | None = None
    image_size: int = 32
    crop_pct: float = 1.0
    eval_interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    threads: int = 2
    workers: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixConfig:
    """Mixup and CutMix: blends each image, and its target, with that of another.

    One draw a batch, for all devices and hosts; the partner is the batch in reverse order.

    Attributes:
      mixup_alpha: Of Beta(alpha, alpha), from which the share of the own image is drawn; 0: never.
      cutmix_alpha: The same for CutMix, which pastes a box of the partner; 0: never.
      prob: Chance that a batch is mixed at all.
      switch_prob: Chance of CutMix where both are on.
    """

    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    prob: float = 1.0
    switch_prob: float = 0.5

    @property
    def enabled(self) -> bool:
        """Whether any batch is mixed."""
        return self.prob > 0 and (self.mixup_alpha > 0 or self.cutmix_alpha > 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EraseConfig:
    """Random erasing: boxes filled after normalisation, in the mixed images.

    Attributes:
      prob: Chance that an image is erased.
      mode: Standard normal noise for each pixel, one such colour a box, or zero (the mean colour).
      count: Most boxes an image: from one to so many, evenly drawn, which share the area.
      area: Smallest and largest part of the image.
      aspect: Smallest and largest height over width, drawn evenly in the logarithm.
    """

    prob: float = 0.0
    mode: Literal["pixel", "color", "zero"] = "pixel"
    count: int = 1
    area: tuple[float, float] = (0.02, 1 / 3)
    aspect: tuple[float, float] = (0.3, 1 / 0.3)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Random changes of the training images, in the order of the attributes.

    The last two are done on the devices, all others where images are decoded.

    Attributes:
      crop: A random part resized to the whole ("resized"), a move by a few pixels ("shift") or
        the view of evaluation ("none").
      scale: Smallest and largest area of a resized crop, as a part of the image.
      ratio: Its smallest and largest width over height, drawn evenly in the logarithm.
      interpolation: How it is resized; "random" draws bilinear or bicubic for each image. Turned
        images (RandAugment) are sampled likewise.
      shift: Largest move of "shift" along each axis, in pixels; black comes in.
      hflip: Chance of a mirror image.
      rand_augment: RandAugment, such as rand-m9-mstd0.5-inc1: magnitude 9 of 10 with standard
        deviation 0.5, and operations that get stronger with it.
      color_jitter: Brightness, contrast and saturation change by factors up to 1 +- this. Only
        where `rand_augment` is None, as in timm.
      mix: Mixup and CutMix.
      erase: Random erasing.
    """

    crop: Literal["resized", "shift", "none"] = "none"
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: Literal["random", "bilinear", "bicubic"] = "random"
    shift: int = 0
    hflip: float = 0.0
    rand_augment: str | None = None
    color_jitter: float = 0.0
    mix: MixConfig = MixConfig()
    erase: EraseConfig = EraseConfig()


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with linear warm-up, then a cosine to the end or a constant rate.

    Attributes:
      learning_rate: The peak, reached when the warm-up ends.
      schedule: What follows the warm-up.
      final_learning_rate: Where the cosine ends, and what the cooldown has.
      warmup_learning_rate: Where the warm-up starts.
      warmup_steps: Steps of the warm-up; 0 starts at the peak.
      warmup_epochs: The same in epochs; replaces `warmup_steps` where given.
      cosine_from_start: Count the cosine from step 0, as timm does: it goes on from where it would
        be without a warm-up, a little below the peak. Else it starts when the warm-up ends.
      cooldown_epochs: Last epochs of the run, at the final rate.
      weight_decay: Decoupled decay of matrices and kernels; vectors are never decayed.
      decay_bias_tables: Whether the relative position biases are decayed too.
      beta1: Decay of the first moment.
      beta2: Decay of the second moment.
      eps: Added to the root of the second moment.
      clip_norm: Largest global norm of the gradient; None leaves it alone.
    """

    learning_rate: float = 1e-3
    schedule: Literal["cosine", "constant"] = "cosine"
    final_learning_rate: float = 1e-5
    warmup_learning_rate: float = 0.0
    warmup_steps: int = 50
    warmup_epochs: float | None = None
    cosine_from_start: bool = False
    cooldown_epochs: float = 0.0
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
      keep_best: Best checkpoints kept besides, by test accuracy of the averaged weights.
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
class TrainConfig:
    """A whole run.

    Attributes:
      model: The network.
      data: The data set.
      augment: Random changes of the training images.
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
      batch_size: Images a step, over all devices and hosts.
      accumulate: Parts of a batch that are computed one after the other, to save memory; the
        gradient is their mean.
      epochs: Passes over the training images, cooldown included.
      steps: Steps in all; replaces `epochs` where given.
      log_every: Steps between two lines of metrics.
      eval_every: Steps between two evaluations; a multiple of `checkpoint.every`.
      label_smoothing: Share of the target that is spread over all classes, in [0, 1).
      ema_decay: Decay a step of the averaged weights, in [0, 1); None keeps no average.
      ema_warmup: Let the decay grow from 0.1, so that the average forgets the initial weights.
      on_nan: When the loss or its gradient is not finite: stop, or skip that update and go on.
      max_skipped: Updates in a row that may be skipped; one more stops the run.
      seed: Seed of initialisation, data order, augmentation and stochastic depth.
      init: Weights to start from: a file that `natjax convert` reads, a URL, or the name of
        published weights of the model, such as imagenet1k. The classifier is drawn anew where the
        number of classes differs, and position biases of another size are resized.
      run: Run folder, of this machine or of mounted storage; by default runs/PRESET.
    """

    data: DataConfig
    model: ModelConfig = ModelConfig()
    augment: AugmentConfig = AugmentConfig()
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
    label_smoothing: float = 0.1
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
            _require(name, getattr(self, name), getattr(self, name) > 0, "positive")
        _require("steps", self.steps, self.steps is None or self.steps > 0, "positive")
        for name, value in (
            ("profile.steps", self.profile.steps),
            ("profile.start", self.profile.start),
        ):
            _require(name, value, value >= 0, "at least 0")
        for name, path in (
            ("run", self.run),
            ("data.dir", self.data.dir),
            ("data.prepared_dir", self.data.prepared_dir),
        ):
            require_local(name, path)
        _require("seed", self.seed, 0 <= self.seed < 2**32, "in [0, 2**32)")
        for name, value in (
            ("label_smoothing", self.label_smoothing),
            ("ema_decay", self.ema_decay or 0.0),
            ("model.drop_path", self.model.drop_path),
        ):
            _require(name, value, 0 <= value < 1, "in [0, 1)")
        for name, value in _integers_from_one(self):
            _require(name, value, value >= 1, "at least 1")
        _require_multiple("checkpoint.every", self.checkpoint.every, "log_every", self.log_every)
        _require_multiple("eval_every", self.eval_every, "checkpoint.every", self.checkpoint.every)
        devices = (self.mesh.data or 1) * self.mesh.fsdp
        _require_multiple("batch_size", self.batch_size, "mesh.data * mesh.fsdp", devices)
        if self.accumulate > 1:
            of = "mesh.data * mesh.fsdp * accumulate"
            _require_multiple("batch_size", self.batch_size, of, devices * self.accumulate)
        _check_augment(self.augment)
        _require("data.crop_pct", self.data.crop_pct, 0 < self.data.crop_pct <= 1, "in (0, 1]")


def _check_augment(augment: AugmentConfig) -> None:
    for name, chance in (
        ("hflip", augment.hflip),
        ("mix.prob", augment.mix.prob),
        ("mix.switch_prob", augment.mix.switch_prob),
        ("erase.prob", augment.erase.prob),
    ):
        _require(f"augment.{name}", chance, 0 <= chance <= 1, "in [0, 1]")
    for name, number in (
        ("shift", augment.shift),
        ("color_jitter", augment.color_jitter),
        ("mix.mixup_alpha", augment.mix.mixup_alpha),
        ("mix.cutmix_alpha", augment.mix.cutmix_alpha),
    ):
        _require(f"augment.{name}", number, number >= 0, "at least 0")
    for name, (low, high), most in (
        ("scale", augment.scale, 1.0),
        ("ratio", augment.ratio, math.inf),
        ("erase.area", augment.erase.area, 1.0),
        ("erase.aspect", augment.erase.aspect, math.inf),
    ):
        rule = f"two numbers, 0 < low <= high{' <= 1' if most == 1 else ''}"
        _require(f"augment.{name}", (low, high), 0 < low <= high <= most, rule)
    if augment.rand_augment is not None:
        parse_policy(augment.rand_augment)


def _integers_from_one(config: TrainConfig) -> tuple[tuple[str, int], ...]:
    return (
        ("mesh.data", 1 if config.mesh.data is None else config.mesh.data),
        ("mesh.fsdp", config.mesh.fsdp),
        ("distributed.timeout", config.distributed.timeout),
        ("checkpoint.every", config.checkpoint.every),
        ("checkpoint.keep_latest", config.checkpoint.keep_latest),
        ("data.image_size", config.data.image_size),
        ("data.threads", config.data.threads),
        ("accumulate", config.accumulate),
        ("augment.erase.count", config.augment.erase.count),
        ("max_skipped", config.max_skipped),
    )


def _require(name: str, value: object, holds: bool, rule: str) -> None:
    if not holds:
        raise UserError(f"{name} must be {rule}, got {value}")


def _require_multiple(name: str, value: int, of: str, divisor: int) -> None:
    _require(name, value, value % divisor == 0, f"a multiple of {of}={divisor}")
