"""Classifiers and backbones by name."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from natjax.backbones.isotropic import Isotropic, IsotropicConfig
from natjax.backbones.nat import NAT, NATConfig
from natjax.kernels.api import Implementation
from natjax.nn.arguments import given
from natjax.nn.initial import initialise
from natjax.registry import FAMILIES, Config, find_config, maker_of
from natjax.weights import structure
from natjax.weights.load import Weights, build_from, open_weights
from natjax.weights.published import find_published, is_published_name
from natjax.weights.state_dict import StateDict


def model_config(name: str) -> NATConfig | IsotropicConfig:
    """The config of a classifier as published.

    Args:
      name: one of ``natjax.list_models(kind="classifier")``.

    Raises:
      ValueError: no classifier of that name; the message suggests near ones.
    """
    return find_config(name, "classifier")


def create_model(
    name: str,
    *,
    num_classes: int | None = None,
    dilations: Sequence[Sequence[int]] | Sequence[int] | None = None,
    kernel_size: int | None = None,
    drop_path: float | None = None,
    dropout: float | None = None,
    attn_dropout: float | None = None,
    in_channels: int | None = None,
    output_norms: bool | None = None,
    features_only: bool | None = None,
    out_indices: Sequence[int] | None = None,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
    remat: bool = False,
    implementation: Implementation | None = None,
    weights: Weights | None = None,
    backbone: Weights | None = None,
    ema: bool = False,
    drop_head: bool = False,
    resize_rpb: bool = False,
    rngs: nnx.Rngs | None = None,
) -> NAT | Isotropic:
    """Make a model, with freshly drawn parameters or with the weights of a file.

    ``model(images)`` gives logits and ``model.features(images)`` the pyramid for dense prediction,
    for normalised images ``[B, H, W, C]`` of any size. Both take ``rngs`` in training.

    An option that is None is as in the file of the weights where natjax wrote it, or else as
    published.

    Args:
      name: one of ``natjax.list_models(kind="classifier")``.
      num_classes: outputs of the classifier, 0 for none (a call then returns pooled features
        ``[B, C]``); None is 0 with ``output_norms`` or ``features_only``. Where the weights have
        another number, the classifier is drawn anew, which a warning says.
      dilations: dilation of every block, one sequence per level (isotropic: one sequence).
        Parameters do not depend on it.
      kernel_size: attention window.
      drop_path: stochastic depth rate of the last block.
      dropout: dropout rate after the attention's projection and in the MLPs; None is 0.
      attn_dropout: dropout rate of the attention weights; None is 0.
      in_channels: channels of the images; None is 3.
      output_norms: whether ``features()`` normalises each map by ``norm0``, ``norm1``, ..., as the
        published dense-prediction backbones do; None is False.
      features_only: whether a call returns ``features()`` instead of logits; the model then has
        neither classifier nor final norm, and leaves those of the weights out.
      out_indices: levels whose maps ``features()`` returns, negative ones from the last; None is
        all of them.
      dtype: dtype of matrix products, convolutions and attention, such as ``jnp.bfloat16``; None
        is ``param_dtype``. Features and logits are float32 at least.
      param_dtype: dtype of the parameters.
      remat: whether the backward pass recomputes each block instead of storing its inside.
      implementation: of the attention op, as in `natjax.na2d`.
      weights: where to load all parameters from: the name of published weights such as
        ``"imagenet1k"`` (`natjax.weights.published_weights`), ``"hf://org/name"``, URL or path, or
        arrays by name, as for `natjax.load_weights`.
      backbone: the same for weights of which only the backbone is wanted, as of a detector, a
        segmentor or a classifier: ``"coco_maskrcnn"``. None for ``num_classes`` is then 0, and
        None for ``output_norms`` is as in the weights; published ones bring the dilations and the
        window that they were trained with.
      ema: take the averaged weights of a training checkpoint.
      drop_head: draw the classifier instead of loading it; with the norms that only one of model
        and file has.
      resize_rpb: resize loaded position biases to the model's window.
      rngs: stream ``params`` (or the default one) draws the parameters; needed unless all of them
        are loaded.

    Raises:
      ValueError: an unknown name, an argument that breaks its rule, or options that conflict with
        those in the weights.
      WeightsError: the weights cannot be found or read, or do not fit.

    >>> import jax.numpy as jnp, natjax
    >>> from flax import nnx
    >>> model = natjax.create_model("nat_micro", num_classes=7, rngs=nnx.Rngs(0))
    >>> model(jnp.zeros((1, 32, 32, 3))).shape
    (1, 7)
    >>> maps = natjax.create_model("nat_micro", features_only=True, rngs=nnx.Rngs(0))
    >>> [x.shape for x in maps(jnp.zeros((1, 32, 32, 3)))]
    [(1, 8, 8, 32), (1, 4, 4, 64)]
    """
    config = model_config(name)
    if weights is not None and backbone is not None:
        raise ValueError("weights and backbone must not both be given")
    source = weights if backbone is None else backbone
    if source is None and rngs is None:
        raise ValueError("rngs must be given where weights are not")
    options = {
        "num_classes": num_classes,
        "dilations": dilations,
        "kernel_size": kernel_size,
        "drop_path": drop_path,
        "dropout": dropout,
        "attn_dropout": attn_dropout,
        "in_channels": in_channels,
        "output_norms": output_norms,
        "features_only": features_only,
        "out_indices": out_indices,
    }
    asked = given(options)
    if output_norms or features_only:
        asked = {"num_classes": 0} | asked

    def build(config: Config, rngs: nnx.Rngs) -> NAT | Isotropic:
        return FAMILIES[type(config)](
            config,
            dtype=dtype,
            param_dtype=param_dtype,
            remat=remat,
            implementation=implementation,
            rngs=rngs,
        )

    if source is None:
        config = structure.with_backbone(config, asked)
        return initialise(lambda rngs: build(config, rngs), rngs)
    published = _published_options(name, source, is_whole=backbone is None)
    state = open_weights(source, models=[name], ema=ema)
    config = config_of_file(name, config, state, asked, resize_rpb=resize_rpb)
    if backbone is not None:
        published = {"num_classes": 0, "output_norms": _has_output_norms(state)} | published
    config = structure.with_backbone(config, published | asked)
    return build_from(
        lambda rngs: build(config, rngs),
        state,
        drop_head=drop_head or backbone is not None or _drops_head(config, state, asked),
        resize_rpb=resize_rpb,
        rngs=rngs,
    )


def _published_options(name: str, weights: Weights, *, is_whole: bool) -> dict[str, Any]:
    """Options that published weights were trained with.

    Raises:
      ValueError: all of a detector or segmentor is asked for.
    """
    if not is_published_name(weights):
        return {}
    entry = find_published([name], str(weights))
    if is_whole and not entry.is_classifier:
        maker = maker_of(entry.whole) if entry.whole else None
        whole = f", or make it whole: natjax.{maker}({entry.whole!r}, ...)" if maker else ""
        raise ValueError(
            f"weights {weights!r} are of a whole model ({entry.task}), of which create_model makes "
            f"the backbone: pass backbone={weights!r}{whole}"
        )
    return entry.options


def config_of_file(
    name: str, config: Config, state: StateDict, asked: Mapping[str, Any], *, resize_rpb: bool
) -> Config:
    """The config that natjax wrote beside weights; of weights of others, the published one.

    Args:
      name: of the model.
      config: as published.
      state: the weights.
      asked: fields of the backbone that the caller asks for.
      resize_rpb: whether the window may be another one.

    Raises:
      ValueError: the weights' config conflicts with the model's name or with what is asked for.
    """
    model, stated = structure.stated_model(state)
    if stated is None or not _has_same_blocks(stated, config):
        return config  # such arrays do not fit, and loading them says what does not
    backbone, published = structure.backbone_of(stated), structure.backbone_of(config)
    differs = backbone.windows != published.windows
    if model not in (None, name) and differs:
        raise ValueError(
            f"{state.where} holds weights of {model}, which has other dilations or windows; got "
            f"name={name!r}; pass name={model!r}, or change the model afterwards by "
            "with_dilations(...) and with_kernel_size(...)"
        )
    fields = ("dilations",) if resize_rpb else ("dilations", "kernel_size")
    for field in fields:
        found = getattr(backbone, field)
        wanted = getattr(dataclasses.replace(backbone, **_only(asked, field)), field)
        if wanted != found:
            raise ValueError(
                f"{field} must be left open or be as in {state.where}, {found}; got {wanted}; load "
                f"the model as it is, and change it (or its backbone) by with_{field}(...)"
            )
    return stated


def _only(asked: Mapping[str, Any], field: str) -> dict[str, Any]:
    return {field: asked[field]} if field in asked else {}


def _has_same_blocks(a: Config, b: Config) -> bool:
    if type(a) is not type(b):
        return False
    first, second = (
        dataclasses.replace(structure.config_structure(config), windows=()) for config in (a, b)
    )
    return first == second


def _has_output_norms(state: StateDict) -> bool:
    return "norm0.bias" in structure.source_shapes(state)


def _drops_head(config: Config, state: StateDict, asked: dict[str, Any]) -> bool:
    """Whether the classifier of the weights is another one than the caller's options ask for."""
    if config.features_only:
        return True
    found, wanted = structure.num_classes(state), config.num_classes
    if "num_classes" not in asked or found == wanted:
        return False
    if wanted:
        warnings.warn(
            f"the classifier of {wanted} classes is drawn anew, as the weights of {state.where} "
            f"have {found or 'none'}; drop_head=True says that this is meant",
            stacklevel=3,
        )
    return True
