"""One step of training and one batch of evaluation, as pure functions."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from natjax.train.functional import FunctionalModel, Params
from natjax.train.state import TrainState

Batch = dict[str, Array]
Scalars = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class Network:
    """A model and the normalisation that comes before it.

    Attributes:
      model: The network.
      mean: Mean of each channel, of pixels in [0, 1].
      std: Standard deviation of each channel.
    """

    model: FunctionalModel
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def logits(
        self, params: Params, images: UInt8[Array, "B H W C"], rngs: nnx.Rngs | None = None
    ) -> Float[Array, "B L"]:
        """Return logits of pixels; without `rngs` as in evaluation."""
        return self.model.apply(params, normalize(images, self.mean, self.std), rngs=rngs)


@dataclasses.dataclass(frozen=True)
class Task:
    """What a step needs besides state and batch; constant over a run.

    Attributes:
      network: The network.
      optimizer: Turns gradients into updates.
      schedule: Learning rate of a step, for the metrics.
      label_smoothing: Share of the target spread over all classes.
      ema_decay: Decay a step of the averaged parameters.
      seed: Seed of stochastic depth.
    """

    network: Network
    optimizer: optax.GradientTransformation
    schedule: Callable[[Array], Array]
    label_smoothing: float
    ema_decay: float
    seed: int


def normalize(
    images: UInt8[Array, "B H W C"], mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Array, "B H W C"]:
    """Return ``(image / 255 - mean) / std`` in float32."""
    shape = (1, 1, 1, len(mean))
    scaled = images.astype(jnp.float32) / 255
    return (scaled - jnp.array(mean).reshape(shape)) / jnp.array(std).reshape(shape)


def cross_entropy(
    logits: Float[Array, "B L"], labels: Int[Array, " B"], smoothing: float
) -> Float[Array, " B"]:
    """Return each image's cross-entropy in nats, with `smoothing` of the target spread evenly."""
    log_p = jax.nn.log_softmax(logits)
    target = jnp.take_along_axis(log_p, labels[:, None], axis=1)[:, 0]
    return -((1 - smoothing) * target + smoothing * log_p.mean(axis=1))


def train_step(task: Task, state: TrainState, batch: Batch) -> tuple[TrainState, Scalars]:
    """Take one step.

    Args:
      task: Constants.
      state: State before; its buffers are donated when jitted by `natjax.train.compiled`.
      batch: ``image`` uint8 [B, H, W, C] and ``label`` int32 [B].

    Returns:
      State after, and float32 scalars: ``loss`` in nats, ``accuracy`` on the augmented batch,
      ``grad_norm`` before clipping, ``learning_rate``.
    """

    def loss_of(params: Params) -> tuple[Array, Array]:
        key = jax.random.fold_in(jax.random.key(task.seed), state.step)
        rngs = nnx.Rngs(droppath=key, dropout=jax.random.fold_in(key, 1))
        logits = task.network.logits(params, batch["image"], rngs)
        hits = (logits.argmax(axis=-1) == batch["label"]).astype(jnp.float32)
        return cross_entropy(logits, batch["label"], task.label_smoothing).mean(), hits.mean()

    (loss, accuracy), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    updates, opt = task.optimizer.update(grads, state.opt, state.params)
    params = optax.apply_updates(state.params, updates)
    scalars = {
        "loss": loss,
        "accuracy": accuracy,
        "grad_norm": optax.tree.norm(grads),
        "learning_rate": task.schedule(state.step),
    }
    ema = update_ema(state.ema, params, state.step, task.ema_decay)
    return TrainState(step=state.step + 1, params=params, opt=opt, ema=ema), scalars


def update_ema(ema: Params, params: Params, step: Int[Array, ""], decay: float) -> Params:
    """Return ``d ema + (1 - d) params`` with ``d = min(decay, (1 + step) / (10 + step))``.

    The smaller decay of early steps lets the average forget the initial values.
    """
    count = step.astype(jnp.float32)
    keep = jnp.minimum(decay, (1 + count) / (10 + count))
    return jax.tree.map(lambda old, new: keep * old + (1 - keep) * new, ema, params)


def eval_step(network: Network, params: Params, batch: Batch) -> Scalars:
    """Return sums over the images of a batch whose ``mask`` is True.

    Args:
      network: The network.
      params: Raw or averaged parameters.
      batch: ``image`` uint8 [B, H, W, C], ``label`` int32 [B], ``mask`` bool [B].

    Returns:
      ``loss`` (sum, nats, float32) and the counts ``images``, ``top1``, ``top5`` (int32). With
      fewer than five classes ``top5`` counts every image. Ties count for the smaller label. And of
      each image, int32[B], ``label``, -1 where masked, and ``guess``, equal to it where ``top1``
      counts the image; -1 where logits that are not numbers hide the guess.
    """
    logits = network.logits(params, batch["image"])
    losses = cross_entropy(logits, batch["label"], 0.0)
    rank = rank_of_label(logits, batch["label"])
    mask, hit = batch["mask"], rank < 1
    guess = logits.argmax(axis=-1).astype(jnp.int32)
    wrong = jnp.where(guess == batch["label"], -1, guess)
    return {
        "label": jnp.where(mask, batch["label"], -1),
        "guess": jnp.where(hit, batch["label"], wrong),
        "images": mask.sum(dtype=jnp.int32),
        "loss": jnp.where(mask, losses, 0.0).sum(),
        "top1": (mask & hit).sum(dtype=jnp.int32),
        "top5": (mask & (rank < 5)).sum(dtype=jnp.int32),
    }


def rank_of_label(logits: Float[Array, "B L"], labels: Int[Array, " B"]) -> Int[Array, " B"]:
    """Return how many classes come before the label; 0 is a hit. Equal logits: smaller label first.

    A logit that is not a number puts the label last, so that a broken model never scores.
    """
    own = jnp.take_along_axis(logits, labels[:, None], axis=1)
    classes = jnp.arange(logits.shape[1])[None, :]
    before = (logits > own) | ((logits == own) & (classes < labels[:, None]))
    return jnp.where(jnp.isfinite(own[:, 0]), before.sum(axis=1), logits.shape[1])


def probabilities(
    network: Network, params: Params, images: UInt8[Array, "B H W C"]
) -> Float[Array, "B L"]:
    """Return the probability of each class, float32."""
    return jax.nn.softmax(network.logits(params, images))
