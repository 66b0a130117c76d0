"""Training a task of one's own: a small network takes the noise out of handwritten digits.

    natjax train examples/denoise.py                        # into runs/denoise
    natjax train examples/denoise.py --noise 0.8 --steps 500 --run runs/noisy
    natjax eval runs/denoise --task examples/denoise.py

The engine brings steps on any number of devices, averages, checkpoints, continuation, metrics and
learning curves. A task says what it learns, from what, and how well.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from sklearn.datasets import load_digits

import natjax
from natjax.train.config.rules import require
from natjax.train.config.settings import OptimizerConfig, RunConfig
from natjax.train.engine.network import split_network
from natjax.train.engine.task import Loss, Scores, Task
from natjax.train.reporting.metrics import Panel, Quantity
from natjax.train.tasks.definition import TaskDefinition, preset_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class DenoiseConfig(RunConfig):
    """Settings of the run, and one more.

    Attributes:
      noise: Standard deviation of the noise; pixels are in [0, 1].
    """

    noise: float = 0.5

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        require("noise", self.noise, self.noise > 0, "positive")


class Denoiser(nnx.Module):
    """Neighborhood attention between two convolutions, with batch normalisation."""

    def __init__(self, dim: int, rngs: nnx.Rngs):
        self.stem = nnx.Conv(1, dim, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(dim, rngs=rngs)
        self.attention = natjax.NeighborhoodAttention2D(dim, 2, kernel_size=5, rngs=rngs)
        self.head = nnx.Conv(dim, 1, (3, 3), rngs=rngs)

    def __call__(self, noisy: jax.Array) -> jax.Array:
        """Return images without noise, ``[B, 8, 8, 1]``."""
        hidden = nnx.gelu(self.norm(self.stem(noisy)))
        return noisy + self.head(hidden + self.attention(hidden))


class Denoise(Task[DenoiseConfig]):
    """The mean squared error of pixels, with noise drawn anew in each step."""

    unit = "images"
    quantities = {"loss": Quantity("squared error", ".5f"), "psnr": Quantity("PSNR", ".2f")}  # noqa: RUF012
    panels = (Panel("squared error", "loss", "loss"), Panel("PSNR (dB)", score="psnr"))

    def __init__(self, config: DenoiseConfig):
        super().__init__(config)
        self.network = split_network(lambda: Denoiser(16, nnx.Rngs(config.seed)))
        images = load_digits().images[..., None].astype(np.float32) / 16
        self.images = {"train": images[:1500], "test": images[1500:]}

    def init(self):
        return self.network.init()

    def prepare(self, batch, keys):
        noise = jax.random.normal(keys.batch, batch["image"].shape)
        return batch | {"noisy": batch["image"] + self.config.noise * noise}, {}

    def loss(self, params, statistics, batch, rngs):
        clean, statistics = self.network.apply(params, statistics, batch["noisy"], train=True)
        return Loss(((clean - batch["image"]) ** 2).sum(), clean.size, statistics, {})

    def predict(self, params, statistics, batch):
        clean, _ = self.network.apply(params, statistics, batch["noisy"])
        return {"error": jnp.mean((clean - batch["image"]) ** 2, axis=(1, 2, 3))}

    def train_size(self):
        return len(self.images["train"])

    def train_batches(self, start, host):
        images, count = self.images["train"], self.config.batch_size
        for step in range(start, 2**31):
            rows = np.random.default_rng((self.config.seed, step)).integers(0, len(images), count)
            yield {"image": images[np.array_split(rows, host.count)[host.index]]}

    def eval_batches(self, host):
        images, count = self.images["test"], self.config.batch_size
        noise = np.random.default_rng(0).normal(size=images.shape).astype(np.float32)
        places = np.arange(-(-len(images) // count) * count).reshape(-1, count)
        batches = []
        for rows in (np.array_split(rows, host.count)[host.index] for rows in places):
            image = images[rows % len(images)]
            noisy = image + self.config.noise * noise[rows % len(images)]
            known = {"mask": rows < len(images), "id": rows.astype(np.int32)}
            batches.append({"image": image, "noisy": noisy} | known)
        return batches

    def evaluator(self):
        return Evaluator()


class Evaluator:
    """Adds up the errors of images."""

    def __init__(self):
        self.errors = []

    def add(self, measured):
        self.errors += measured["error"][measured["mask"]].tolist()

    def result(self):
        loss = float(np.mean(self.errors))
        values = {"images": len(self.errors), "loss": loss, "psnr": -10 * float(np.log10(loss))}
        return Scores(values=values, primary="psnr")


def denoise() -> DenoiseConfig:
    """The 8x8 digits of scikit-learn under noise of half their range."""
    optimizer = OptimizerConfig(learning_rate=3e-3, warmup_steps=20)
    return DenoiseConfig(optimizer=optimizer, batch_size=64, steps=300, eval_every=100)


TASK = TaskDefinition(
    name="denoise", config=DenoiseConfig, presets={"denoise": preset_of(denoise)}, build=Denoise
)
