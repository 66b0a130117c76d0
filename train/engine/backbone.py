"""The networks of natjax by their settings, for tasks of any kind."""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

import natjax
from natjax.backbones.isotropic import IsotropicConfig
from natjax.backbones.nat import NATConfig
from natjax.create import model_config
from natjax.train.config.settings import ModelConfig, read_dilations
from natjax.train.engine.network import Network, Params, Statistics, split_network
from natjax.train.engine.sharding import keep_whole
from natjax.train.engine.task import ParameterGroup
from natjax.train.errors import UserError, did_you_mean

Backbone = NATConfig | IsotropicConfig


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
    check_name(config.name, "classifier")
    shape = network_shape(config, model_config(config.name))

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


def check_name(name: str, kind: str) -> None:
    """Check that there is a model of a name.

    Args:
      name: The name.
      kind: As `natjax.list_models` has it, such as ``"segmentor"``.

    Raises:
      UserError: there is none of that kind; near names are suggested.
    """
    names = natjax.list_models(kind=kind)
    if name not in names:
        near = did_you_mean(name, names)
        raise UserError(
            f"model.name must be a {kind}, got {name!r}{near} (`natjax models` lists all)"
        )


def network_shape(config: ModelConfig, backbone: Backbone) -> dict[str, Any]:
    """Return window and dilations, where they are given, as the config of a backbone has them.

    Args:
      config: The settings.
      backbone: The config that they change.

    Raises:
      UserError: levels are given to a model that has none, or the model cannot have them.
    """
    found: dict[str, Any] = {}
    if config.kernel_size is not None:
        found["kernel_size"] = config.kernel_size
    if config.dilations is not None:
        levels = read_dilations(config.dilations)
        if not isinstance(backbone, NATConfig) and len(levels) > 1:
            raise UserError(
                f"model.dilations must have no levels, as {config.name} has none,"
                f" got {config.dilations!r}"
            )
        found["dilations"] = levels if isinstance(backbone, NATConfig) else levels[0]
    try:
        dataclasses.replace(backbone, **found)
    except ValueError as error:
        raise UserError(f"model {config.name}: {error}") from error
    return found


def configured_network(
    build: Callable[[], Any], config: ModelConfig, backbone: Backbone, prefix: str = ""
) -> Network:
    """Return a network of natjax as pure functions, as the settings want it trained.

    Args:
      build: Makes it with its parameters drawn.
      config: The settings.
      backbone: The config of its backbone.
      prefix: As for `backbone_group`.
    """
    network = split_network(build)
    if config.dtype == config.gradients == "bfloat16":
        network = with_rounded_gradients(network, block_counts(backbone), prefix)
    return scaled_by_fan_in(network) if config.init == "fan_in" else network


def block_counts(shape: Backbone) -> tuple[int, ...]:
    """Return how many blocks the levels of a backbone have; an isotropic one is one level."""
    return shape.depths if isinstance(shape, NATConfig) else (shape.depth,)


def backbone_group(
    group: ParameterGroup,
    name: str,
    config: ModelConfig,
    blocks: tuple[int, ...],
    prefix: str = "",
) -> ParameterGroup:
    """Return how a parameter is trained where the settings of the backbone say something about it.

    Args:
      group: How it is trained otherwise.
      name: Of the parameter.
      config: The backbone's settings.
      blocks: As `block_counts` has them.
      prefix: What names of the backbone begin with, such as ``"backbone."``.
    """
    layer = layer_of(name, blocks, prefix)
    if layer is None:
        return group
    rate = group.learning_rate * config.layer_decay ** (1 + sum(blocks) - layer)
    return dataclasses.replace(group, learning_rate=rate, frozen=group.frozen or config.frozen)


def layer_of(name: str, blocks: tuple[int, ...], prefix: str = "") -> int | None:
    """Return the layer of a backbone's parameter; None where it comes after the backbone.

    The tokenizer is layer 0 and the blocks follow; a downsampler belongs to the block before it.

    Args:
      name: Of the parameter.
      blocks: As `block_counts` has them.
      prefix: As for `backbone_group`.

    >>> names = ["patch_embed.norm.scale", "levels.1.blocks.0.gamma1", "levels.3.blocks.4.attn.rpb"]
    >>> names += ["levels.0.downsample.norm.bias", "head.bias"]
    >>> [layer_of(name, (3, 4, 6, 5)) for name in names]
    [0, 4, 18, 3, None]
    """
    found = _IN_BACKBONE.fullmatch(name.removeprefix(prefix))
    if found is None or not name.startswith(prefix):
        return None
    level, block, single = found.group("level", "block", "single")
    if single is not None:
        return 1 + int(single)
    if level is None:
        return 0
    before = sum(blocks[: int(level)])
    return before + (blocks[int(level)] if block is None else 1 + int(block))


# Levels of blocks are called "levels" or "layers"; an isotropic model's "layers" are its blocks.
_IN_BACKBONE = re.compile(
    r"patch_embed\..*|(?:levels|layers)\.(?P<level>\d+)\.(?:blocks\.(?P<block>\d+)|downsample)\..*"
    r"|layers\.(?P<single>\d+)\..*"
)


def with_rounded_gradients(network: Network, blocks: tuple[int, ...], prefix: str = "") -> Network:
    """Return the network with its kernels rounded to bfloat16 before they are used.

    It computes the same, as a bfloat16 backbone rounds them anyway, but gradients of kernels are
    then made in bfloat16: `natjax.nn.products`.

    Args:
      network: A network with a bfloat16 backbone.
      blocks: As `block_counts` has them.
      prefix: As for `backbone_group`.
    """

    def rounded(name: str, value: jax.Array) -> jax.Array:
        is_kernel = name.endswith("kernel") and layer_of(name, blocks, prefix) is not None
        return value.astype(jnp.bfloat16) if is_kernel else value

    def apply(params: Params, *args: Any, **options: Any) -> Any:
        low = {name: rounded(name, value) for name, value in params.items()}
        return network.apply(low, *args, **options)

    return dataclasses.replace(network, apply=apply)


def with_whole_parameters(network: Network) -> Network:
    """Return the network with every parameter gathered before it is used.

    The compiler may read a kernel that is split over "fsdp" as one whose channels are, and move
    activations to it: convolutions of many channels, and batches of few images, tempt it.

    Args:
      network: Any.
    """

    def apply(params: Params, *args: Any, **options: Any) -> Any:
        return network.apply(keep_whole(params), *args, **options)

    return dataclasses.replace(network, apply=apply)


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
