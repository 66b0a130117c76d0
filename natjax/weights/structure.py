"""What model weights belong to: by their names and shapes, or by what natjax wrote beside them."""

from __future__ import annotations

import collections
import dataclasses
import json
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import numpy as np
from flax import nnx

import natjax
from natjax.backbones.isotropic import IsotropicConfig
from natjax.backbones.nat import NATConfig
from natjax.dense.detection.config import MaskRCNNConfig
from natjax.dense.segmentation.upernet import UPerNetConfig
from natjax.registry import FAMILIES, Config, find_config, known_configs
from natjax.weights.names import SAME, Naming, Shape, by_name, match_template
from natjax.weights.state_dict import BACKBONE_PREFIX, StateDict
from natjax.weights.untrusted import WeightsError, show

Backbone = NATConfig | IsotropicConfig

_LEVELLED = ("levels.{i}.blocks.{j}", "layers.{i}.blocks.{j}")
_FLAT = "layers.{j}"

_PREFIX = "natjax."
# A config costs memory by its numbers, and files come from strangers.
_MOST_LAYERS = 1000
_LARGEST = 2**31
_LONGEST_CONFIG = 2**18


@dataclasses.dataclass(frozen=True, kw_only=True)
class Structure:
    """All that shapes tell of a backbone. Dilations and input size are not among it.

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


def backbone_of(config: Config) -> Backbone:
    """The config of the backbone of a segmentor or detector; of a backbone, itself."""
    return getattr(config, "backbone", config)


def with_backbone(config: Config, changes: Mapping[str, Any]) -> Config:
    """A config with other fields of its backbone.

    Args:
      config: of a backbone, or of what has one.
      changes: fields and values.
    """
    backbone = dataclasses.replace(backbone_of(config), **changes)
    if isinstance(config, UPerNetConfig | MaskRCNNConfig):
        return dataclasses.replace(config, backbone=backbone)
    return backbone


def config_of(model: nnx.Module) -> Config | None:
    """The config of a model of natjax, with that of its backbone as it is now; None of others.

    Args:
      model: any module; the backbone of a segmentor or detector may have been put in later.
    """
    config = getattr(model, "config", None)
    backbone = getattr(getattr(model, "backbone", None), "config", None)
    if isinstance(config, UPerNetConfig | MaskRCNNConfig) and isinstance(backbone, Backbone):
        return dataclasses.replace(config, backbone=backbone)
    return config if isinstance(config, Config) else None


def config_structure(config: Config) -> Structure:
    """The structure of a backbone by its config, or by that of what it is the backbone of."""
    backbone = backbone_of(config)
    hidden = int(backbone.dim * backbone.mlp_ratio)
    if isinstance(backbone, NATConfig):
        return Structure(
            family="overlapping" if backbone.overlapping else "patches",
            dim=backbone.dim,
            depths=backbone.depths,
            num_heads=backbone.num_heads,
            windows=(backbone.kernel_size,) * len(backbone.depths),
            hidden=hidden,
            layer_scale=backbone.layer_scale is not None,
        )
    return Structure(
        family="isotropic",
        dim=backbone.dim,
        depths=(backbone.depth,),
        num_heads=(backbone.num_heads,),
        windows=(backbone.kernel_size or backbone.map_size,),
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
    """The structure of a backbone by its weights, or by those of what it is the backbone of.

    Raises:
      WeightsError: an array that tells of it is missing or has another rank than in any model.
    """
    found = source_shapes(source)
    shapes = {name.removeprefix(BACKBONE_PREFIX): shape for name, shape in found.items()}
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
    shape = source_shapes(source).get(source.naming.classes)
    return shape[0] if shape else 0


def find_model(source: StateDict, model: str | None) -> tuple[str | None, Config]:
    """Name and config of the model that weights are of.

    Args:
      source: the weights.
      model: the name, where the caller knows it.

    Raises:
      ValueError: no model of that name.
      WeightsError: they are of none, or may be of several.
    """
    if model is not None:
        return model, _adapt(find_config(model), source)
    name, config = stated_model(source)
    if config is not None:
        if not _are_of(source, [config]):
            raise WeightsError(f"{source.where}: arrays and config in the file are of two models")
        return name, config
    names = candidates(source)
    if len(names) == 1:
        return names[0], _adapt(find_config(names[0]), source)
    if not names:
        raise WeightsError(
            f"{source.where} is of no published model ({source_structure(source)});"
            " natjax.load_weights loads it into a model of your own"
        )
    options = " or ".join(f"model={name!r}" for name in names)
    raise WeightsError(
        f"{source.where} may be {' or '.join(names)}, whose arrays have the same shapes; pass"
        f" {options} (--model)"
    )


def candidates(source: StateDict) -> list[str]:
    """Names of the published models that a source may be, by its shapes and keys."""
    known, classes = known_configs(), num_classes(source)
    fits = _are_of(source, known.values())
    names = [name for name, config in known.items() if config in fits]
    exact = [name for name in names if known[name].num_classes == classes]
    names = exact or names
    family = source.root.removesuffix(".")  # Hugging Face puts it before the keys
    return [name for name in names if not family or name.startswith(f"{family}_")]


def stated_model(source: StateDict) -> tuple[str | None, Config | None]:
    """Name and config of the model, as natjax wrote them beside the weights; None where it did not.

    Of weights that were taken out of a segmentor or detector it is the backbone's config, which has
    no name.

    Args:
      source: the weights.

    Raises:
      WeightsError: the config is damaged, or of another version of natjax.
    """
    config = read_config(source.metadata)
    if config is None or _is_named(source.naming, config):
        return _read_model(source.metadata), config
    return None, backbone_of(config)


def _is_named(naming: Naming, config: Config) -> bool:
    """Whether weights of a model may have the names of a table."""
    return naming.marker in (known.marker for known in by_name(config.namings()).values())


def _are_of(source: StateDict, configs: Iterable[Config]) -> list[Config]:
    """Those configs whose kind and whose backbone's structure weights have."""
    structure = source_structure(source)
    fits = (config for config in configs if config_structure(config) == structure)
    return [config for config in fits if _is_named(source.naming, config)]


def known_namings() -> list[Naming]:
    """All tables of names of all models as published, each once."""
    tables = (by_name(config.namings()).values() for config in known_configs().values())
    return list({naming.marker: naming for found in tables for naming in found}.values())


def _adapt(config: Config, source: StateDict) -> Config:
    """A config with what may differ between weights of one model: classes, channels, norms."""
    shapes = source_shapes(source)
    changes: dict[str, Any] = {"in_channels": _in_channels(source)}
    if backbone_of(config) is config:
        changes["output_norms"] = "norm0.bias" in shapes
    config = with_backbone(config, changes)
    return dataclasses.replace(config, num_classes=num_classes(source))


def _in_channels(source: StateDict) -> int:
    ends = ("patch_embed.proj.0.kernel", "patch_embed.proj.kernel")
    for key, array in source.arrays.items():
        binding = source.naming.translate(key, source.root)
        if binding is not None and binding.ours[0].endswith(ends) and array.ndim == 4:
            (ours,) = binding.layout.to_ours((np.broadcast_to(np.int8(0), array.shape),))
            return ours.shape[2]
    return 3


def config_names(config: Config) -> list[str]:
    """Names of the published models with the parameters of a config, most alike first.

    Models whose parameters are equal in shape are told apart by dilations and input size, as far as
    the config has those of one of them.
    """
    known = {name: other for name, other in known_configs().items() if _is_alike(other, config)}
    alike = [name for name, other in known.items() if _geometry(other) == _geometry(config)]
    same_classes = [name for name in alike if known[name].num_classes == config.num_classes]
    return same_classes or alike or list(known)


def _is_alike(a: Config, b: Config) -> bool:
    """Whether parameters have the same shapes but for classes."""
    same = type(a) is type(b) and _heads(a) == _heads(b)
    return same and config_structure(a) == config_structure(b)


def _heads(config: Config) -> tuple[object, ...]:
    """What the shapes of the heads depend on, and what is computed by them; without classes."""
    if isinstance(config, UPerNetConfig):
        return config.channels, config.auxiliary_channels, config.pool_scales
    if isinstance(config, MaskRCNNConfig):
        return config.channels, config.mask_channels, config.box_head, len(config.stages)
    return ()


def _geometry(config: Config) -> tuple[object, ...]:
    return backbone_of(config).dilations, backbone_of(config).input_size


def write_metadata(config: Config, model: str | None, naming: str) -> dict[str, str]:
    """The metadata of a file.

    Args:
      config: of the model.
      model: its name; None for one of one's own.
      naming: of the keys.
    """
    values = {
        "version": natjax.__version__,
        "naming": naming,
        "config": json.dumps(_encoded(config)),
    }
    if model is not None:
        values["model"] = model
    # transformers reads no safetensors file without this.
    tag = {} if naming == "natjax" else {"format": "pt"}
    return tag | {_PREFIX + name: value for name, value in values.items()}


def _encoded(value: object) -> object:
    """A config as JSON has it; those that a field may have one of several kinds of say which."""
    if isinstance(value, tuple):
        return [_encoded(entry) for entry in value]
    if not dataclasses.is_dataclass(value):
        return value
    fields = {x.name: _encoded(getattr(value, x.name)) for x in dataclasses.fields(value)}
    family = FAMILIES.get(type(value))
    return fields if family is None else {"family": family.__name__, **fields}


def _read_model(metadata: Mapping[str, str]) -> str | None:
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
        layers = _count_layers(values) + _count_layers(values.get("backbone") or {})
        if layers > _MOST_LAYERS:
            raise ValueError(f"more than {_MOST_LAYERS} layers")
        return _decoded(Config, values, "config")
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


def _count_layers(values: Mapping[str, Any]) -> int:
    """Blocks and layers that a config asks for, before anything is made of it."""
    blocks = sum(map(abs, values.get("depths", ()))) + abs(values.get("depth", 0))
    box_head = values.get("box_head", {})
    stage = 8 + abs(box_head.get("convs", 0)) + abs(box_head.get("linears", 0))
    return blocks + len(values.get("pool_scales", ())) + stage * len(values.get("stages", ()))


def _decoded(kind: Any, value: Any, name: str) -> Any:
    """A value from JSON, if it is of the kind that a field of a config has."""
    options = typing.get_args(kind) if typing.get_origin(kind) not in (tuple, Literal) else ()
    for option in options or (kind,):
        if dataclasses.is_dataclass(option) and isinstance(value, dict):
            family = FAMILIES.get(option)
            if family is None or value.get("family") == family.__name__:
                hints = typing.get_type_hints(option)
                fields = {key: entry for key, entry in value.items() if key != "family"}
                return option(**{key: _decoded(hints[key], x, key) for key, x in fields.items()})
        elif typing.get_origin(option) is tuple and isinstance(value, list):
            inner = typing.get_args(option)[0]  # all entries of a tuple are of one kind
            return tuple(_decoded(inner, entry, name) for entry in value)
        elif _is_plain(option, value):
            return value
    raise TypeError(f"{name} must be of type {getattr(kind, '__name__', kind)}")


def _is_plain(kind: Any, value: object) -> bool:
    """Whether a value is text, a truth value, or a number that some model has."""
    if isinstance(value, str):
        return value in typing.get_args(kind)
    if kind in (bool, type(None)):
        return isinstance(value, kind)
    wanted = {int: int, float: int | float}.get(kind, ())
    return isinstance(value, wanted) and not isinstance(value, bool) and abs(value) < _LARGEST
