"""Models by name."""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx

from natjax.isotropic import Isotropic, IsotropicConfig
from natjax.kernels.api import Implementation
from natjax.nat import NAT, NATConfig
from natjax.variants import VARIANTS


def list_models(pattern: str = "*") -> list[str]:
    """Names of the models, sorted.

    Args:
      pattern: shell pattern that the names must match, such as ``"dinat_*"``.

    >>> import natjax
    >>> natjax.list_models("nat_[mt]*")
    ['nat_micro', 'nat_mini', 'nat_tiny']
    """
    return sorted(fnmatch.filter(VARIANTS, pattern))


def model_config(name: str) -> NATConfig | IsotropicConfig:
    """The config of a model as published.

    Raises:
      ValueError: no model of that name; the message suggests near ones.
    """
    if name not in VARIANTS:
        near = difflib.get_close_matches(str(name), VARIANTS, n=3)
        hint = f"did you mean {', '.join(near)}?" if near else "natjax.list_models() has the names"
        raise ValueError(f"name must be one of the {len(VARIANTS)} models; got {name!r}; {hint}")
    return VARIANTS[name]


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
    output_norms: bool = False,
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
    remat: bool = False,
    implementation: Implementation | None = None,
    rngs: nnx.Rngs,
) -> NAT | Isotropic:
    """Make a model with freshly drawn parameters.

    ``model(images)`` gives logits and ``model.features(images)`` the pyramid for dense prediction,
    for normalised images ``[B, H, W, C]`` of any size. Both take ``rngs`` in training.

    Args:
      name: one of `list_models`.
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
        published dense-prediction backbones do.
      dtype: dtype of the computation, such as ``jnp.bfloat16``; None is ``param_dtype``.
      param_dtype: dtype of the parameters.
      remat: whether the backward pass recomputes each block instead of storing its inside.
      implementation: of the attention op, as in `natjax.na2d`.
      rngs: stream ``params`` (or the default one) draws the parameters.

    Raises:
      ValueError: an unknown name, or an argument that breaks its rule.

    >>> import jax.numpy as jnp, natjax
    >>> from flax import nnx
    >>> model = natjax.create_model("nat_micro", num_classes=7, rngs=nnx.Rngs(0))
    >>> model(jnp.zeros((1, 32, 32, 3))).shape
    (1, 7)
    """
    if num_classes is None and output_norms:
        num_classes = 0
    optional = {
        "num_classes": num_classes,
        "dilations": dilations,
        "kernel_size": kernel_size,
        "drop_path": drop_path,
    }
    config = dataclasses.replace(
        model_config(name),
        dropout=dropout,
        attn_dropout=attn_dropout,
        in_channels=in_channels,
        output_norms=output_norms,
        **{key: value for key, value in optional.items() if value is not None},
    )
    family = NAT if isinstance(config, NATConfig) else Isotropic
    return family(
        config,
        dtype=dtype,
        param_dtype=param_dtype,
        remat=remat,
        implementation=implementation,
        rngs=rngs,
    )
