"""One step of training and one batch of evaluation, as pure functions."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from natjax.train.config.settings import EraseConfig, MixConfig
from natjax.train.engine.functional import FunctionalModel, Params
from natjax.train.engine.state import TrainState
from natjax.train.tasks.classification.augment.erase import erase
from natjax.train.tasks.classification.augment.mix import draw_mix, mix_images

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

    def logits(self, params: Params, images: UInt8[Array, "B H W C"]) -> Float[Array, "B L"]:
        """Return logits of pixels, as in evaluation."""
        return self.model.apply(params, normalize(images, self.mean, self.std))


@dataclasses.dataclass(frozen=True)
class Task:
    """What a step needs besides state and batch; constant over a run.

    Attributes:
      network: The network.
      optimizer: Turns gradients into updates.
      schedule: Learning rate of a step, for the metrics.
      label_smoothing: Share of the target spread over all classes.
      ema_decay: Decay a step of the averaged parameters; None where none are kept.
      seed: Seed of stochastic depth and of what is random about batches.
      ema_warmup: Whether early steps have a smaller decay.
      mix: Mixup and CutMix.
      erase: Random erasing.
      accumulate: Parts of a batch that are computed one after the other.
      remat: Whether the network computes blocks twice, to take less memory.
    """

    network: Network
    optimizer: optax.GradientTransformation
    schedule: Callable[[Array], Array]
    label_smoothing: float
    ema_decay: float | None
    seed: int
    ema_warmup: bool = True
    mix: MixConfig = dataclasses.field(default_factory=MixConfig)
    erase: EraseConfig = dataclasses.field(default_factory=EraseConfig)
    accumulate: int = 1
    remat: bool = False


def normalize(
    images: UInt8[Array, "B H W C"] | Float[Array, "B H W C"],
    mean: tuple[float, ...],
    std: tuple[float, ...],
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
      state: State before; its buffers are donated when jitted by `natjax.train.engine.compile`.
      batch: ``image`` uint8 [B, H, W, C] and ``label`` int32 [B].

    Returns:
      State after, and float32 scalars: ``loss`` in nats, ``accuracy`` on the augmented batch (of
      mixed images: how often the label with the larger share comes first), ``grad_norm`` before
      clipping, ``learning_rate``.
    """
    (loss, accuracy), grads = batch_gradient(task, state.params, state.step, batch)
    updates, opt = task.optimizer.update(grads, state.opt, state.params)
    params = optax.apply_updates(state.params, updates)
    scalars = {
        "loss": loss,
        "accuracy": accuracy,
        "grad_norm": optax.tree.norm(grads),
        "learning_rate": task.schedule(state.step),
    }
    ema = state.ema
    if task.ema_decay is not None:
        ema = update_ema(ema, params, state.step, task.ema_decay, task.ema_warmup)
    return TrainState(step=state.step + 1, params=params, opt=opt, ema=ema), scalars


def batch_gradient(
    task: Task, params: Params, step: Int[Array, ""], batch: Batch
) -> tuple[tuple[Array, Array], Params]:
    """Return mean loss and accuracy of a batch, and the gradient of the loss.

    What is drawn (mixing, erasing) is a function of the seed, the step and the row in the global
    batch, and so the same for any mesh, number of hosts and number of parts. Stochastic depth alone
    draws anew in each part.

    Args:
      task: Constants.
      params: Where the gradient is taken.
      step: Steps before this one.
      batch: As for `train_step`.
    """
    keys = _step_keys(task, step)
    drawn = _draw_mix(task, keys, batch)

    def gradient(part: Batch, index: Array | int) -> tuple[tuple[Array, Array], Params]:
        images = _prepare(task, part, drawn, keys)
        key = jax.random.fold_in(keys["depth"], index)

        def loss_of(params: Params) -> tuple[Array, Array]:
            rngs = nnx.Rngs(droppath=key, dropout=jax.random.fold_in(key, 2**31))
            logits = task.network.model.apply(params, images, rngs=rngs)
            return _loss_and_accuracy(logits, part, drawn, task.label_smoothing)

        return jax.value_and_grad(loss_of, has_aux=True)(params)

    whole = _with_partners(task, batch)
    if task.accumulate == 1:
        return gradient(whole, 0)
    return _mean_over_parts(gradient, params, _split(whole, task.accumulate))


def network_input(task: Task, step: Int[Array, ""], batch: Batch) -> Batch:
    """Return what the network learns from in a step: the images as it sees them, and the labels.

    Args:
      task: Constants.
      step: Steps before this one.
      batch: As for `train_step`.

    Returns:
      ``image`` float32 [B, H, W, C] and ``label``; of mixed batches also ``other_label`` and
      ``own``, the weight of the first.
    """
    keys = _step_keys(task, step)
    drawn, whole = _draw_mix(task, keys, batch), _with_partners(task, batch)
    labels = {name: whole[name] for name in ("label", "other_label") if name in whole}
    own = {} if drawn is None else {"own": drawn[1]}
    return {"image": _prepare(task, whole, drawn, keys)} | labels | own


def _step_keys(task: Task, step: Int[Array, ""]) -> dict[str, Array]:
    key = jax.random.fold_in(jax.random.key(task.seed), step)
    return dict(zip(("depth", "mix", "erase"), jax.random.split(key, 3), strict=True))


def _draw_mix(task: Task, keys: dict[str, Array], batch: Batch) -> tuple[Array, Array] | None:
    if not task.mix.enabled:
        return None
    return draw_mix(keys["mix"], task.mix, *batch["image"].shape[1:3])


def _with_partners(task: Task, batch: Batch) -> Batch:
    """The batch with the row of each image and, where images are mixed, the other one."""
    whole = {name: jnp.asarray(batch[name]) for name in ("image", "label")}
    if task.mix.enabled:
        whole |= {f"other_{name}": values[::-1] for name, values in whole.items()}
    return whole | {"row": jnp.arange(batch["label"].shape[0])}


def _prepare(
    task: Task, part: Batch, drawn: tuple[Array, Array] | None, keys: dict[str, Array]
) -> Float[Array, "B H W C"]:
    images = part["image"]
    if drawn is not None:
        images = mix_images(images, part["other_image"], drawn[0])
    images = normalize(images, task.network.mean, task.network.std)
    if task.erase.prob:
        images = erase(images, part["row"], keys["erase"], task.erase)
    return images


def _loss_and_accuracy(
    logits: Float[Array, "B L"],
    part: Batch,
    drawn: tuple[Array, Array] | None,
    smoothing: float,
) -> tuple[Array, Array]:
    loss, label = cross_entropy(logits, part["label"], smoothing), part["label"]
    if drawn is not None:
        # Linear in the target: the same as with the blend of two smoothed targets.
        own, other = drawn[1], part["other_label"]
        loss = own * loss + (1 - own) * cross_entropy(logits, other, smoothing)
        label = jnp.where(own >= 0.5, label, other)
    hits = (logits.argmax(axis=-1) == label).astype(jnp.float32)
    return loss.mean(), hits.mean()


def _split(whole: Batch, parts: int) -> Batch:
    """Make part j of rows j, parts + j, 2 parts + j, ...: an axis of parts before the batch's.

    Every device holds consecutive rows, as many as `parts` divides, and so keeps all of its own:
    consecutive rows as parts would move nearly all images.
    """
    return {
        name: values.reshape(-1, parts, *values.shape[1:]).swapaxes(0, 1)
        for name, values in whole.items()
    }


def _mean_over_parts(
    gradient: Callable[[Batch, Array], Any], params: Params, parts: Batch
) -> tuple[tuple[Array, Array], Params]:
    count = parts["label"].shape[0]

    def add(sums: Any, part: tuple[Batch, Array]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, sums, gradient(*part)), None

    zeros = ((jnp.zeros(()), jnp.zeros(())), jax.tree.map(jnp.zeros_like, params))
    sums, _ = jax.lax.scan(add, zeros, (parts, jnp.arange(count)))
    return jax.tree.map(lambda total: total / count, sums)


def update_ema(
    ema: Params, params: Params, step: Int[Array, ""], decay: float, warmup: bool = True
) -> Params:
    """Return ``d ema + (1 - d) params``.

    Args:
      ema: Average before.
      params: Newest parameters.
      step: Steps before this one.
      decay: The d of late steps.
      warmup: Whether ``d = min(decay, (1 + step) / (10 + step))``: the smaller decay of early steps
        lets the average forget the initial values.
    """
    count = step.astype(jnp.float32)
    keep = jnp.minimum(decay, (1 + count) / (10 + count)) if warmup else decay
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
