"""A Flax NNX model as two pure functions over a flat dict of parameters.

Split once, here; the rest of training is plain JAX. The dict's keys are the attribute paths joined
by dots (``levels.0.blocks.1.attn.qkv.kernel``), which is also how checkpoints name parameters.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx

import natjax
from natjax.train.config.settings import ModelConfig
from natjax.train.errors import UserError, did_you_mean

Params = dict[str, jax.Array]


@runtime_checkable
class ImageSet(Protocol):
    """What a step needs to know of a data set; `natjax.train.data.datasets.DatasetSpec` is one.

    Attributes:
      channels: Channels of the images.
      class_names: Name of each label.
      mean: Mean of each channel, of pixels in [0, 1].
      std: Standard deviation of each channel.
    """

    @property
    def channels(self) -> int: ...  # noqa: D102

    @property
    def class_names(self) -> tuple[str, ...]: ...  # noqa: D102

    @property
    def mean(self) -> tuple[float, ...]: ...  # noqa: D102

    @property
    def std(self) -> tuple[float, ...]: ...  # noqa: D102


@dataclasses.dataclass(frozen=True)
class FunctionalModel:
    """A network without its values.

    Attributes:
      init: ``() -> params``, to be jitted.
      apply: ``(params, images, rngs=None) -> logits``; without `rngs` it evaluates.
    """

    init: Callable[[], Params]
    apply: Callable[..., jax.Array]


def functional(build: Callable[[], nnx.Module]) -> FunctionalModel:
    """Split a model into pure functions, without computing any parameter.

    Args:
      build: Makes the model, with its random numbers fixed.

    Raises:
      ValueError: the model holds state other than parameters, which training would not carry.
    """
    graph, params, rest = nnx.split(nnx.eval_shape(build), nnx.Param, ...)
    if jax.tree.leaves(rest):
        raise ValueError(f"model state must be parameters only, got {rest}")
    paths = {_join(path): path for path, _ in nnx.to_flat_state(params)}

    def init() -> Params:
        state = nnx.to_flat_state(nnx.state(build(), nnx.Param))
        return {_join(path): leaf.get_value() for path, leaf in state}

    def apply(values: Params, *args: Any, **options: Any) -> jax.Array:
        leaves = [(paths[name], nnx.Param(value)) for name, value in values.items()]
        return nnx.merge(graph, nnx.from_flat_state(leaves))(*args, **options)

    return FunctionalModel(init, apply)


def _join(path: tuple[Any, ...]) -> str:
    return ".".join(map(str, path))


def model_builder(
    config: ModelConfig, spec: ImageSet, seed: int
) -> Callable[[], natjax.NAT | natjax.Isotropic]:
    """Return what makes the configured network, with the data set's channels and classes.

    Raises:
      UserError: there is no model of that name; near names are suggested.
    """
    names = natjax.list_models(kind="classifier")
    if config.name not in names:
        near = did_you_mean(config.name, names)
        raise UserError(f"unknown model {config.name!r}{near} (`natjax models` lists all)")

    def build() -> natjax.NAT | natjax.Isotropic:
        return natjax.create_model(
            config.name,
            num_classes=len(spec.class_names),
            in_channels=spec.channels,
            drop_path=config.drop_path,
            dtype=jnp.dtype(config.dtype),
            remat=config.remat,
            rngs=nnx.Rngs(seed),
        )

    return build


def build_model(config: ModelConfig, spec: ImageSet, seed: int) -> FunctionalModel:
    """Return the configured network as pure functions.

    Raises:
      UserError: there is no model of that name; near names are suggested.
    """
    model = functional(model_builder(config, spec, seed))
    if config.init == "fan_in":
        return dataclasses.replace(model, init=lambda: scale_by_fan_in(model.init()))
    return model


def scale_by_fan_in(params: Params) -> Params:
    """Scale every kernel to the standard deviation ``1 / sqrt(inputs of an output)``.

    Args:
      params: Flat dict; entries named ``...kernel`` have their outputs on the last axis.
    """

    def scaled(kernel: jax.Array) -> jax.Array:
        return kernel / (jnp.std(kernel) * math.prod(kernel.shape[:-1]) ** 0.5)

    return {
        name: scaled(value) if name.endswith("kernel") else value for name, value in params.items()
    }
