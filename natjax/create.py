"""Classifiers and backbones by name."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx

from natjax.backbones.isotropic import Isotropic, IsotropicConfig
from natjax.backbones.nat import NAT, NATConfig
from natjax.kernels.api import Implementation
from natjax.registry import find_config


def model_config(name: str) -> NATConfig | IsotropicConfig:
    """The config of a classifier as published.

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
    dropout: float = 0.0,
    attn_dropout: float = 0.0,
    in_channels: int = 3,
    output_norms: bool | None = None,
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
    remat: bool = False,
    implementation: Implementation | None = None,
    weights: str | os.PathLike[str] | None = None,
    drop_head: bool = False,
    resize_rpb: bool = False,
    rngs: nnx.Rngs | None = None,
) -> NAT | Isotropic:
    """Make a model, with freshly drawn parameters or with the weights of a file.

    ``model(images)`` gives logits and ``model.features(images)`` the pyramid for dense prediction,
    for normalised images ``[B, H, W, C]`` of any size. Both take ``rngs`` in training.

    Args:
      name: one of ``natjax.list_models(kind="classifier")``.
      num_classes: outputs of the classifier, 0 for none (a call then returns pooled features
        ``[B, C]``); None is as published, or 0 with ``output_norms``.
      dilations: dilation of every block, one sequence per level (isotropic: one sequence); None is
        as published. Parameters do not depend on it.
      kernel_size: attention window; None is as published.
      drop_path: stochastic depth rate of the last block; None is as published.
      dropout: dropout rate after the attention's projection and in the MLPs.
      attn_dropout: dropout rate of the attention weights.
      in_channels: channels of the images.
      output_norms: whether ``features()`` normalises each map by ``norm0``, ``norm1``, ..., as the
        published dense-prediction backbones do; None is False.
      dtype: dtype of matrix products, convolutions and attention, such as ``jnp.bfloat16``; None
        is ``param_dtype``. Residual stream, norms, LayerScale, pooling and classifier are in
        float32 whatever it is (float64 where it is float64), and so are features and logits.
      param_dtype: dtype of the parameters.
      remat: whether the backward pass recomputes each block instead of storing its inside.
      implementation: of the attention op, as in `natjax.na2d`.
      weights: where to load all parameters from: the name of published weights such as
        ``"imagenet1k"`` (`natjax.weights.published_weights`), ``"hf://org/name"``, URL or path, as
        for `natjax.load_weights`. With published weights of a detector or segmentor, None for
        ``dilations``, ``kernel_size`` and ``output_norms`` is as in that.
      drop_head: draw the classifier instead of loading it, for another ``num_classes``; with the
        norms that only one of model and file has.
      resize_rpb: resize loaded position biases to the model's window.
      rngs: stream ``params`` (or the default one) draws the parameters; needed unless all of them
        are loaded.

    Raises:
      ValueError: an unknown name, or an argument that breaks its rule.
      WeightsError: the weights cannot be found or read, or do not fit.

    >>> import jax.numpy as jnp, natjax
    >>> from flax import nnx
    >>> model = natjax.create_model("nat_micro", num_classes=7, rngs=nnx.Rngs(0))
    >>> model(jnp.zeros((1, 32, 32, 3))).shape
    (1, 7)
    """
    if weights is None and rngs is None:
        raise ValueError("rngs must be given where weights are not")
    config = model_config(name)
    optional = {
        "num_classes": num_classes,
        "dilations": dilations,
        "kernel_size": kernel_size,
        "drop_path": drop_path,
        "output_norms": output_norms,
    }
    given = {key: value for key, value in optional.items() if value is not None}
    changes = ({} if weights is None else _published_options(name, weights)) | given
    if changes.get("output_norms"):
        changes = {"num_classes": 0} | changes
    config = dataclasses.replace(
        config,
        dropout=dropout,
        attn_dropout=attn_dropout,
        in_channels=in_channels,
        **changes,
    )
    family = NAT if isinstance(config, NATConfig) else Isotropic

    def build(rngs: nnx.Rngs) -> NAT | Isotropic:
        return family(
            config,
            dtype=dtype,
            param_dtype=param_dtype,
            remat=remat,
            implementation=implementation,
            rngs=rngs,
        )

    if weights is None:
        return build(rngs)
    from natjax.weights.load import build_loaded

    return build_loaded(
        build, weights, name=name, drop_head=drop_head, resize_rpb=resize_rpb, rngs=rngs
    )


def _published_options(name: str, weights: str | os.PathLike[str]) -> dict[str, Any]:
    from natjax.weights.published import find_published, is_published_name

    return find_published([name], str(weights)).options if is_published_name(weights) else {}
