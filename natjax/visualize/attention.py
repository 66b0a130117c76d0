"""Attention weights of modules and models, and maps of where a token looks."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from natjax.backbones.base import VisionModel
from natjax.kernels import api
from natjax.nn.attention import NeighborhoodAttention, NeighborhoodAttention2D

_NAME = "attention_weights"


def attention_weights(
    module: nnx.Module, x: Float[Array, "B *X C"]
) -> Float[Array, "B *X N K"] | dict[str, Float[Array, "B _ _ _N _K"]]:
    """How much each query attends to each of its neighbors.

    A call of `flax.nnx.capture`, which works on any function of a module as well; the weights are
    then called ``attention_weights``.

    Args:
      module: an attention module, or a module around some, such as a model.
      x: what a call of it takes, and what it is evaluated on.

    Returns:
      Of an attention module its weights: for every token and head the softmax over the ``K``
      neighbors of the window, row by row, which adds up to 1. Of any other module those of each
      attention module in it, by path, such as ``"levels.0.blocks.1.attn"``. They are float32 at
      least, and ``K`` times as large as the map: take a model's on few images.

    Raises:
      ValueError: the module has no attention.

    >>> import jax.numpy as jnp, natjax
    >>> from flax import nnx
    >>> attention = natjax.NeighborhoodAttention2D(32, 4, kernel_size=5, rngs=nnx.Rngs(0))
    >>> natjax.attention_weights(attention, jnp.ones((1, 12, 8, 32))).shape
    (1, 12, 8, 4, 25)
    """
    _, captured = nnx.capture(module, nnx.Intermediate)(x)
    found = {
        ".".join(map(str, path[:-1])): value.get_value()[0]
        for path, value in nnx.to_flat_state(captured)
        if path[-1] == _NAME
    }
    if not found:
        raise ValueError(
            f"module must be or hold natjax's attention modules; got {type(module).__name__}"
        )
    return found[""] if isinstance(module, NeighborhoodAttention) else found


def attention_maps(
    model: VisionModel, images: Float[Array, "B H W I"], at: Sequence[int]
) -> dict[str, Float[Array, "B _N _H _W"]]:
    """Where the token of a pixel looks, in each block of a model.

    Args:
      model: a model of natjax.
      images: normalised images.
      at: row and column of the pixel.

    Returns:
      For each attention module, by path, the weights of each head laid on the level's map; 0
      outside the window of the token. They add up to 1, less what is attended to in the padding of
      maps that are smaller than the window.

    Raises:
      ValueError: a pixel outside the images.

    >>> import jax.numpy as jnp, natjax
    >>> from flax import nnx
    >>> model = natjax.create_model("nat_micro", rngs=nnx.Rngs(0))
    >>> maps = natjax.attention_maps(model, jnp.ones((1, 32, 32, 3)), (16, 16))
    >>> maps["levels.0.blocks.1.attn"].shape
    (1, 2, 8, 8)
    """
    height, width = images.shape[1:3]
    row, column = at
    if not (0 <= row < height and 0 <= column < width):
        raise ValueError(f"at must be a pixel of {height} x {width}; got {tuple(at)}")
    weights = attention_weights(model, images)
    modules = {".".join(map(str, path)): module for path, module in nnx.iter_modules(model)}
    return {
        path: _map_of_query(
            modules[path],
            value,
            (row * value.shape[1] // height, column * value.shape[2] // width),
        )
        for path, value in weights.items()
    }


def _map_of_query(
    module: NeighborhoodAttention2D, weights: Float[Array, "B H W N K"], query: tuple[int, int]
) -> Float[Array, "B N H W"]:
    """Lay the weights of a query on the map.

    The weighted sum of the values at a query is linear in them, and its factors are the weights:
    its gradient has every weight in the place of its key, wherever the neighborhood is.
    """
    size = weights.shape[1:3]
    padding = [
        (0, max(0, k * d - n))
        for k, d, n in zip(module.kernel_size, module.dilation, size, strict=True)
    ]
    weights = jnp.pad(weights, ((0, 0), *padding, (0, 0), (0, 0)))

    def attended(value: Float[Array, "B H W N 1"]) -> Float[Array, ""]:
        out = api.na2d_av(
            weights,
            value,
            module.kernel_size,
            stride=module.stride,
            dilation=module.dilation,
            is_causal=module.is_causal,
            is_periodic=module.is_periodic,
        )
        return jnp.sum(out[:, query[0], query[1]])

    value = jnp.zeros((*weights.shape[:-1], 1), weights.dtype)
    laid = jax.grad(attended)(value)[:, : size[0], : size[1], :, 0]
    return jnp.moveaxis(laid, -1, 1)


def saliency(
    model: VisionModel, images: Float[Array, "B H W I"], label: int | None = None
) -> Float[Array, "B H W"]:
    """How much each pixel matters to what a classifier says: the gradient of a class's log share.

    Args:
      model: a classifier.
      images: normalised images.
      label: the class; None is the likeliest one of each image.

    Returns:
      The largest absolute value over the channels of the gradient.

    Raises:
      ValueError: the model has no classifier, or not that class.

    References:
      Simonyan et al., *Deep Inside Convolutional Networks*, 2014.
    """
    classes = model.config.num_classes
    if not classes:
        raise ValueError("model must have a classifier; got num_classes=0")
    if label is not None and not 0 <= label < classes:
        raise ValueError(f"label must be a class of {classes}, from 0; got {label}")

    def score(images: Float[Array, "B H W I"]) -> Float[Array, ""]:
        shares = jax.nn.log_softmax(model(images))
        best = jnp.argmax(shares, axis=-1) if label is None else jnp.full(len(images), label)
        return jnp.take_along_axis(shares, best[:, None], axis=-1).sum()

    return jnp.max(jnp.abs(jax.grad(score)(images)), axis=-1)
