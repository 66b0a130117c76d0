"""What every model does with its maps: pyramid, pooling and classifier.

Maps, norms, pooling and classifier are in float32 whatever the ``dtype`` of a model (float64 in
float64 models): `natjax.nn.block` says why.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from natjax.nn.arguments import check_rate, check_size
from natjax.nn.layers import LayerNorm, full_precision, linear


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Fields of every model.

    Attributes:
      mlp_ratio: hidden size of the MLPs in units of their channels.
      drop_path: stochastic depth rate of the last block; the first has 0, in between it is linear.
      dropout: dropout rate after the attention's projection and in the MLPs (0 in every paper).
      attn_dropout: dropout rate of the attention weights (0 in every paper).
      num_classes: outputs of the classifier; 0 for none.
      in_channels: channels of the images.
      input_size: height and width of the images the model was designed for.
      output_norms: whether ``features()`` normalises each map, as dense-prediction backbones do.
    """

    mlp_ratio: float = 4.0
    drop_path: float = 0.0
    dropout: float = 0.0
    attn_dropout: float = 0.0
    num_classes: int = 1000
    in_channels: int = 3
    input_size: int = 224
    output_norms: bool = False

    def __post_init__(self) -> None:
        for name in ("drop_path", "dropout", "attn_dropout"):
            check_rate(name, getattr(self, name))
        check_size("num_classes", self.num_classes, at_least=0)
        for name in ("in_channels", "input_size"):
            check_size(name, getattr(self, name))
        if not self.mlp_ratio > 0:
            raise ValueError(f"mlp_ratio must be positive; got {self.mlp_ratio!r}")

    def _set(self, **fields: Any) -> None:
        """Set checked fields; for ``__post_init__`` only."""
        for name, value in fields.items():
            object.__setattr__(self, name, value)


class VisionModel(nnx.Module):
    """Base of the models; a subclass computes the maps.

    Args:
      config: the shape of the model.
      channels: channels of each map of the pyramid.
      dtype: dtype of matrix products, convolutions and attention.
      param_dtype: dtype of the parameters.
      rngs: draws the initial parameters.
    """

    def __init__(
        self,
        config: ModelConfig,
        channels: tuple[int, ...],
        *,
        dtype: Any,
        param_dtype: Any,
        rngs: nnx.Rngs,
    ):
        options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        exact = full_precision(options)
        self.config = config
        self.dtype = jnp.dtype(dtype)
        has_norm = config.num_classes or not config.output_norms
        self.norm = LayerNorm(channels[-1], **exact) if has_norm else None
        if config.output_norms:
            for i, size in enumerate(channels):
                setattr(self, f"norm{i}", LayerNorm(size, **exact))
        classes = config.num_classes
        self.head = linear(channels[-1], classes, **exact) if classes else None

    def maps(
        self, images: Float[Array, "B H W I"], rngs: nnx.Rngs | None = None
    ) -> list[Float[Array, "B _Hi _Wi _Ci"]]:
        """The output of each level before its downsampler, without output norms."""
        raise NotImplementedError

    def features(
        self, images: Float[Array, "B H W I"], rngs: nnx.Rngs | None = None
    ) -> list[Float[Array, "B _Hi _Wi _Ci"]]:
        """The pyramid for dense prediction.

        Args:
          images: normalised images of any size.
          rngs: as for a call.

        Returns:
          The output of each level before its downsampler, at strides 4, 8, 16, ..., in float32
          (float64 for a float64 model); under the norms ``norm0``, ``norm1``, ... if the model was
          made with ``output_norms=True``. An isotropic model has one level.
        """
        maps = self.maps(images, rngs)
        if not self.config.output_norms:
            return maps
        return [getattr(self, f"norm{i}")(x) for i, x in enumerate(maps)]

    def pooled(
        self, images: Float[Array, "B H W I"], rngs: nnx.Rngs | None = None
    ) -> Float[Array, "B C"]:
        """What the classifier sees: the last map, normalised and averaged over positions.

        Raises:
          ValueError: the model has no final norm (``output_norms=True`` and ``num_classes=0``).
        """
        if self.norm is None:
            raise ValueError(
                "pooled features need the final norm, which a model with output_norms=True and "
                "num_classes=0 does not have; use features(), or another num_classes"
            )
        return jnp.mean(self.norm(self.maps(images, rngs)[-1]), axis=(1, 2))

    def __call__(
        self, images: Float[Array, "B H W I"], rngs: nnx.Rngs | None = None
    ) -> Float[Array, "B classes"]:
        """Logits, or pooled features of a model with ``num_classes=0``.

        Args:
          images: normalised images of any size.
          rngs: streams ``droppath`` and ``dropout`` of a training step, as far as their rates are
            not 0; None means evaluation.

        Returns:
          Logits in float32 (float64 for a float64 model).

        Raises:
          ValueError: images of another rank, dtype or number of channels.
        """
        x = self.pooled(images, rngs)
        return x if self.head is None else self.head(x)

    def _checked(self, images: Array) -> Array:
        channels = self.config.in_channels
        if images.ndim != 4 or images.shape[-1] != channels or 0 in images.shape:
            raise ValueError(
                f"images must have shape [batch, height, width, {channels}], none of them 0; got "
                f"{images.shape}"
            )
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise ValueError(f"images must be floats, normalised; got {images.dtype.name}")
        return images.astype(self.dtype)
