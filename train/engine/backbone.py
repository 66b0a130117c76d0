"""The networks of natjax by their settings, for tasks of any kind."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx

import natjax
from natjax.backbones.nat import NATConfig
from natjax.create import model_config
from natjax.train.config.settings import ModelConfig, read_dilations
from natjax.train.engine.network import Network, Params, Statistics
from natjax.train.errors import UserError, did_you_mean


def build_model(
    config: ModelConfig, seed: int, **options: Any
) -> Callable[[], natjax.NAT | natjax.Isotropic]:
    """Return what makes the configured network.

    Args:
      config: Its settings.
      seed: For its parameters.
      **options: More arguments of `natjax.create_model`, such as ``num_classes``.

    Raises:
      UserError: there is no model of that name, near names being suggested; or the model cannot
        have the window or the dilations.
    """
    names = natjax.list_models(kind="classifier")
    if config.name not in names:
        near = did_you_mean(config.name, names)
        raise UserError(f"unknown model {config.name!r}{near} (`natjax models` lists all)")
    shape = network_shape(config)
    try:
        dataclasses.replace(model_config(config.name), **shape)
    except ValueError as error:
        raise UserError(f"model {config.name}: {error}") from error

    def build() -> natjax.NAT | natjax.Isotropic:
        return natjax.create_model(
            config.name,
            drop_path=config.drop_path,
            dtype=jnp.dtype(config.dtype),
            remat=config.remat,
            rngs=nnx.Rngs(seed),
            **shape,
            **options,
        )

    return build


def network_shape(config: ModelConfig) -> dict[str, Any]:
    """Return window and dilations as `natjax.create_model` takes them, where they are given.

    Raises:
      UserError: levels are given to a model that has none.
    """
    found: dict[str, Any] = {}
    if config.kernel_size is not None:
        found["kernel_size"] = config.kernel_size
    if config.dilations is not None:
        levels = read_dilations(config.dilations)
        if isinstance(model_config(config.name), NATConfig):
            found["dilations"] = levels
        elif len(levels) == 1:
            found["dilations"] = levels[0]
        else:
            raise UserError(
                f"model.dilations must have no levels, as {config.name} has none,"
                f" got {config.dilations!r}"
            )
    return found


def scaled_by_fan_in(network: Network) -> Network:
    """Return the network with every drawn kernel at the standard deviation ``1 / sqrt(inputs)``.

    Kernels are the parameters whose names end so; the outputs are on their last axis.
    """

    def scaled(kernel: Any) -> Any:
        return kernel / (jnp.std(kernel) * math.prod(kernel.shape[:-1]) ** 0.5)

    def init() -> tuple[Params, Statistics]:
        params, statistics = network.init()
        kernels = {name: x for name, x in params.items() if name.endswith("kernel")}
        return params | {name: scaled(kernel) for name, kernel in kernels.items()}, statistics

    return dataclasses.replace(network, init=init)
