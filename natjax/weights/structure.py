"""What model weights belong to: by their names and shapes, or by what natjax wrote beside them."""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Iterator, Mapping

import numpy as np

import natjax
from natjax.backbones.isotropic import IsotropicConfig
from natjax.backbones.nat import NATConfig
from natjax.backbones.variants import VARIANTS
from natjax.weights.names import SAME, Shape, match_template
from natjax.weights.state_dict import StateDict
from natjax.weights.untrusted import WeightsError, show

Config = NATConfig | IsotropicConfig

_LEVELLED = ("levels.{i}.blocks.{j}", "layers.{i}.blocks.{j}")
_FLAT = "layers.{j}"

_FAMILIES = {"NAT": NATConfig, "Isotropic": IsotropicConfig}
_PREFIX = "natjax."
# A config costs memory by its numbers, and files come from strangers.
_MOST_BLOCKS = 1000
_LARGEST = 2**31
_LONGEST_CONFIG = 2**18


@dataclasses.dataclass(frozen=True, kw_only=True)
class Structure:
    """All that shapes tell of a model. Dilations and input size are not among it.

    Attributes:
      family: ``"overlapping"`` (NAT, DiNAT), ``"patches"`` (DiNAT_s) or ``"isotropic"``.
      dim: channels of the first level.
      depths: blocks in each level.
      num_heads: heads in each level.
      windows: side of the attention window in each level (of the map for global attention).
      hidden: hidden size of the MLPs in the first level.
      layer_scale: whether there are gammas.
    """

    family: str
    dim: int
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    windows: tuple[int, ...]
    hidden: int
    layer_scale: bool


def config_structure(config: Config) -> Structure:
    """The structure of a model by its config."""
    hidden = int(config.dim * config.mlp_ratio)
    if isinstance(config, NATConfig):
        return Structure(
            family="overlapping" if config.overlapping else "patches",
            dim=config.dim,
            depths=config.depths,
            num_heads=config.num_heads,
            windows=(config.kernel_size,) * len(config.depths),
            hidden=hidden,
            layer_scale=config.layer_scale is not None,
        )
    return Structure(
        family="isotropic",
        dim=config.dim,
        depths=(config.depth,),
        num_heads=(config.num_heads,),
        windows=(config.kernel_size or config.map_size,),
        hidden=hidden,
        layer_scale=False,
    )


def source_shapes(source: StateDict) -> dict[str, Shape | None]:
    """Our names that a source has, with the shape where that is the same in both."""
    shapes: dict[str, Shape | None] = {}
    for key, array in source.arrays.items():
        binding = source.naming.translate(key, source.root)
        for name in () if binding is None else binding.ours:
            shapes[name] = array.shape if binding.layout is SAME else None
    return shapes


def source_structure(source: StateDict) -> Structure:
    """The structure of a model by its weights.

    Raises:
      WeightsError: an array that tells of it is missing or has another rank than in any model.
    """
    shapes = source_shapes(source)
    blocks = dict(_blocks(shapes))
    try:
        first, depths = _levels(blocks)
        biases = [_square(shapes[f"{at}.attn.rpb"]) for at in first]
        (dim,) = shapes["patch_embed.norm.bias"] or ()
        (hidden,) = shapes[f"{first[0]}.mlp.fc1.bias"] or ()
    except (KeyError, ValueError) as error:
        raise WeightsError(
            f"{source.where} has the names of a NAT but not its parts: {error} is missing or has"
            " another rank; pass the name of the model to see all that differs"
        ) from error
    levelled = "patch_embed.proj.0.bias" in shapes
    patches = "layers.0.blocks.0.norm1.bias" in shapes
    return Structure(
        family="overlapping" if levelled else "patches" if patches else "isotropic",
        dim=dim,
        depths=depths,
        num_heads=tuple(heads for heads, _ in biases),
        windows=tuple(window for _, window in biases),
        hidden=hidden,
        layer_scale=any(name.endswith(".gamma1") for name in shapes),
    )


def _blocks(shapes: Mapping[str, Shape | None]) -> Iterator[tuple[tuple[int, int], str]]:
    """``(level, block)`` and path of every block."""
    for name in shapes:
        if not name.endswith(".norm1.bias"):
            continue
        path = name.removesuffix(".norm1.bias")
        for template in (*_LEVELLED, _FLAT):
            numbers = match_template(template, path)
            if numbers is not None:
                found = dict(numbers)
                yield (found.get("i", 0), found["j"]), path


def _levels(blocks: Mapping[tuple[int, int], str]) -> tuple[list[str], tuple[int, ...]]:
    """Path of each level's first block, and the number of blocks in each."""
    count = 1 + max((level for level, _ in blocks), default=-1)
    if not count:
        raise KeyError("every block's norm1.bias")
    first = [blocks[level, 0] for level in range(count)]
    depths = collections.Counter(level for level, _ in blocks)
    return first, tuple(depths[level] for level in range(count))


def _square(shape: Shape | None) -> tuple[int, int]:
    """Heads and window of a position bias."""
    heads, rows, columns = shape or ()
    if rows != columns or rows % 2 == 0:
        raise ValueError(f"a square position bias of odd side (not {shape})")
    return heads, (rows + 1) // 2


def num_classes(source: StateDict) -> int:
    """Outputs of the classifier; 0 where there is none."""
    shape = source_shapes(source).get("head.bias")
    return shape[0] if shape else 0


def candidates(source: StateDict) -> list[str]:
    """Names of the published models that a source may be, by its shapes and keys."""
    structure, classes = source_structure(source), num_classes(source)
    names = [name for name, config in VARIANTS.items() if config_structure(config) == structure]
    exact = [name for name in names if VARIANTS[name].num_classes == classes]
    names = exact or names
    family = source.root.removesuffix(".")  # Hugging Face puts it before the keys
    return [name for name in names if not family or name.startswith(f"{family}_")]


def adapt(config: Config, source: StateDict) -> Config:
    """A config with what may differ between weights of one model: classifier, channels, norms."""
    shapes = source_shapes(source)
    return dataclasses.replace(
        config,
        num_classes=num_classes(source),
        in_channels=_in_channels(source),
        output_norms="norm0.bias" in shapes,
    )


def _in_channels(source: StateDict) -> int:
    for key, array in source.arrays.items():
        binding = source.naming.translate(key, source.root)
        first = ("patch_embed.proj.0.kernel",), ("patch_embed.proj.kernel",)
        if binding is not None and binding.ours in first and array.ndim == 4:
            (ours,) = binding.layout.to_ours((np.broadcast_to(np.int8(0), array.shape),))
            return ours.shape[2]
    return 3


def config_names(config: Config) -> list[str]:
    """Names of the published models with the parameters of a config, most alike first.

    Models whose parameters are equal in shape are told apart by dilations and input size, as far as
    the config has those of one of them.
    """
    names = [n for n, c in VARIANTS.items() if config_structure(c) == config_structure(config)]
    alike = [n for n in names if _geometry(VARIANTS[n]) == _geometry(config)]
    same_classes = [n for n in alike if VARIANTS[n].num_classes == config.num_classes]
    return same_classes or alike or names


def _geometry(config: Config) -> tuple[object, ...]:
    return config.dilations, config.input_size


def write_metadata(config: Config, model: str | None, naming: str) -> dict[str, str]:
    """The metadata of a file.

    Args:
      config: of the model.
      model: its name; None for one of one's own.
      naming: of the keys.
    """
    family = "NAT" if isinstance(config, NATConfig) else "Isotropic"
    values = {
        "version": natjax.__version__,
        "naming": naming,
        "config": json.dumps({"family": family, **dataclasses.asdict(config)}),
    }
    if model is not None:
        values["model"] = model
    # transformers reads no safetensors file without this.
    tag = {} if naming == "natjax" else {"format": "pt"}
    return tag | {_PREFIX + name: value for name, value in values.items()}


def read_model(metadata: Mapping[str, str]) -> str | None:
    """The name of the model, if it is there; a stranger's text, that no message needs in full."""
    name = metadata.get(f"{_PREFIX}model")
    return None if name is None else show(name, bare=True)


def read_config(metadata: Mapping[str, str]) -> Config | None:
    """The config of the model, if it is there.

    Raises:
      WeightsError: it is damaged, or of another version of natjax.
    """
    text = metadata.get(f"{_PREFIX}config")
    if text is None:
        return None
    try:
        if len(text) > _LONGEST_CONFIG:
            raise ValueError(f"more than {_LONGEST_CONFIG} characters")
        values = json.loads(text)
        family = _FAMILIES[values.pop("family")]
        fields = {field.name: field.type for field in dataclasses.fields(family)}
        config = {name: _tuples(value) for name, value in values.items()}
        for name, value in config.items():
            _check_value(name, value, fields.get(name, ""))
        depths = config.get("depths", (config.get("depth", 0),))
        if sum(depths) > _MOST_BLOCKS:
            raise ValueError(f"more than {_MOST_BLOCKS} blocks")
        return family(**config)
    except (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        version = show(metadata.get(f"{_PREFIX}version", "unknown"), bare=True)
        reason = show(f"{type(error).__name__}: {error}", bare=True, longest=200)
        raise WeightsError(
            f"the model's config in the file cannot be read ({reason}; written by natjax"
            f" {version}); pass the name of the model"
        ) from None


def _check_value(name: str, value: object, kind: str) -> None:
    """Refuse numbers that no model has, before anything is computed with them."""
    for entry in value if isinstance(value, tuple) else (value,):
        if isinstance(entry, tuple):
            _check_value(name, entry, kind)
        elif isinstance(entry, bool) != (kind == "bool"):
            raise TypeError(f"{name} must be of type {kind}")
        elif isinstance(entry, float | int) and not abs(entry) < _LARGEST:
            raise ValueError(f"{name} must be a number below {_LARGEST}")
        elif not isinstance(entry, float | int | None):
            raise TypeError(f"{name} must be of numbers")


def _tuples(value: object) -> object:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
