"""What every model does with its maps: pyramid, pooling and classifier.

Maps, norms, pooling and classifier are in float32 whatever the ``dtype`` of a model (float64 in
float64 models): `natjax.nn.block` says why.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from natjax.kernels.api import Implementation
from natjax.nn.arguments import check_implementation, check_rate, check_size
from natjax.nn.block import Block, run_block
from natjax.nn.layers import LayerNorm, full_precision, linear
from natjax.nn.mode import HasSummary, Module

if TYPE_CHECKING:
    from natjax.weights.names import Naming


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
      features_only: whether a call returns ``features()``; there is no final norm then, and
        ``num_classes`` must be 0.
      out_indices: levels whose maps ``features()`` returns, in rising order; negative ones count
        from the last. None is every level.
    """

    mlp_ratio: float = 4.0
    drop_path: float = 0.0
    dropout: float = 0.0
    attn_dropout: float = 0.0
    num_classes: int = 1000
    in_channels: int = 3
    input_size: int = 224
    output_norms: bool = False
    features_only: bool = False
    out_indices: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("drop_path", "dropout", "attn_dropout"):
            check_rate(name, getattr(self, name))
        check_size("num_classes", self.num_classes, at_least=0)
        for name in ("in_channels", "input_size"):
            check_size(name, getattr(self, name))
        if not self.mlp_ratio > 0:
            raise ValueError(f"mlp_ratio must be positive; got {self.mlp_ratio!r}")
        if self.features_only and self.num_classes:
            raise ValueError(
                f"num_classes must be 0 with features_only=True; got {self.num_classes}"
            )

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each level."""
        raise NotImplementedError

    @property
    def reductions(self) -> tuple[int, ...]:
        """Pixels along each axis that a token of each level stands for."""
        raise NotImplementedError

    @property
    def windows(self) -> tuple[tuple[int, int], ...]:
        """Kernel size and dilation of every block, from the first."""
        raise NotImplementedError

    def namings(self) -> tuple[Naming, ...]:
        """Tables of the names that weights of such a model have elsewhere."""
        from natjax.backbones.names import backbone_namings

        return backbone_namings(self)

    @property
    def outputs(self) -> tuple[int, ...]:
        """Levels whose maps ``features()`` returns."""
        return tuple(range(len(self.channels))) if self.out_indices is None else self.out_indices

    def _set(self, **fields: Any) -> None:
        """Set checked fields; for ``__post_init__`` only."""
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    def _set_outputs(self) -> None:
        """Check ``out_indices``, once the number of levels is known."""
        if self.out_indices is not None:
            self._set(out_indices=_check_outputs(self.out_indices, len(self.channels)))


def _check_outputs(indices: Any, count: int) -> tuple[int, ...]:
    rule = f"out_indices must be rising integers from {-count} to {count - 1}; got {indices!r}"
    is_sequence = isinstance(indices, Sequence) and not isinstance(indices, str)
    if not is_sequence or not all(type(i) is int and -count <= i < count for i in indices):
        raise ValueError(rule)
    levels = tuple(i % count for i in indices)
    if not levels or list(levels) != sorted(set(levels)):
        raise ValueError(rule)
    return levels


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureInfo:
    """What a map of ``features()`` is.

    Attributes:
      level: which level gives it, counting from 0.
      channels: of the map.
      reduction: pixels along each axis that a token stands for; sizes are rounded up.
    """

    level: int
    channels: int
    reduction: int


class VisionModel(HasSummary, Module):
    """Base of the models; a subclass makes the tokenizer ``patch_embed`` and the levels.

    Args:
      config: the shape of the model.
      dtype: dtype of matrix products, convolutions and attention; None is ``param_dtype``.
      param_dtype: dtype of the parameters.
      remat: whether the backward pass recomputes each block instead of storing its inside.
      implementation: of the attention op, as in `natjax.na2d`.
      rngs: draws the initial parameters.
    """

    patch_embed: nnx.Module

    def __init__(
        self,
        config: ModelConfig,
        *,
        dtype: DTypeLike | None,
        param_dtype: DTypeLike,
        remat: bool,
        implementation: Implementation | None,
        rngs: nnx.Rngs,
    ):
        self.config = config
        self.dtype = jnp.dtype(dtype or param_dtype)
        self.remat = remat
        check_implementation(implementation)
        options = {"dtype": self.dtype, "param_dtype": param_dtype, "rngs": rngs}
        self._add_levels(implementation=implementation, **options)
        options["dtype"] = full_precision(self.dtype)
        last, classes = config.channels[-1], config.num_classes
        has_norm = not config.features_only and (classes > 0 or not config.output_norms)
        self.norm = LayerNorm(last, **options) if has_norm else None
        if config.output_norms:
            for i in config.outputs:
                setattr(self, f"norm{i}", LayerNorm(config.channels[i], **options))
        self.head = linear(last, classes, **options) if classes else None

    def _add_levels(
        self,
        *,
        implementation: Implementation | None,
        dtype: DTypeLike,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        """Add the tokenizer and the levels, in the order that parameters are drawn in."""
        raise NotImplementedError

    def _levels(self) -> list[tuple[list[Block], nnx.Module | None]]:
        """Blocks and downsampler of each level."""
        raise NotImplementedError

    def _check_map(self, images: tuple[int, ...], x: tuple[int, ...]) -> None:
        """Check height and width of the tokenized images; not every model takes every size."""

    def namings(self) -> tuple[Naming, ...]:
        """Tables of the names that its weights have elsewhere, for `natjax.load_weights`."""
        return self.config.namings()

    @property
    def num_features(self) -> int:
        """Channels of the last map, which are what the classifier sees."""
        return self.config.channels[-1]

    @property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        """What each map of ``features()`` is.

        >>> import natjax
        >>> from flax import nnx
        >>> model = natjax.create_model("nat_micro", rngs=nnx.Rngs(0))
        >>> [(x.channels, x.reduction) for x in model.feature_info]
        [(32, 4), (64, 8)]
        """
        config = self.config
        return tuple(
            FeatureInfo(level=i, channels=config.channels[i], reduction=config.reductions[i])
            for i in config.outputs
        )

    def blocks(self) -> list[Block]:
        """All blocks, from the first; their path in the model differs between families."""
        return [block for blocks, _ in self._levels() for block in blocks]

    def with_dilations[M: VisionModel](
        self: M, dilations: Sequence[Sequence[int]] | Sequence[int]
    ) -> M:
        """The same model with other dilations, on the same parameters.

        Args:
          dilations: of every block, one sequence per level (isotropic: one sequence).

        Returns:
          A model of its own, whose parameters are at first the same arrays.

        Raises:
          ValueError: dilations that do not fit the model.

        >>> import natjax
        >>> from flax import nnx
        >>> model = natjax.create_model("nat_micro", rngs=nnx.Rngs(0))
        >>> model.with_dilations(((1, 2), (1, 2, 1, 2))).blocks()[1].attn.dilation
        (2, 2)
        """
        return self._with(dilations=dilations)

    def with_kernel_size[M: VisionModel](self: M, kernel_size: int) -> M:
        """The same model with another attention window, and position biases resized to it.

        Args:
          kernel_size: side of the window.

        Returns:
          A model of its own; parameters but the position biases are at first the same arrays.

        Raises:
          ValueError: no size of a window.
        """
        return self._with(kernel_size=kernel_size)

    def _with[M: VisionModel](self: M, **fields: Any) -> M:
        model = nnx.clone(self)
        model.config = dataclasses.replace(self.config, **fields)
        for block, window in zip(model.blocks(), model.config.windows, strict=True):
            block.attn.set_window(*window)
        return model

    def maps(
        self, images: Float[Array, "B H W I"], rngs: nnx.Rngs | None = None
    ) -> list[Float[Array, "B _Hi _Wi _Ci"]]:
        """The output of each level before its downsampler, without output norms.

        Args:
          images: normalised images of any size.
          rngs: as for a call.

        Raises:
          ValueError: as for a call.
        """
        return self._run(images, rngs, len(self.config.channels))

    def features(
        self, images: Float[Array, "B H W I"], rngs: nnx.Rngs | None = None
    ) -> list[Float[Array, "B _Hi _Wi _Ci"]]:
        """The pyramid for dense prediction.

        Args:
          images: normalised images of any size.
          rngs: as for a call.

        Returns:
          The output of each level (of those of ``out_indices``) before its downsampler, in float32
          (float64 for a float64 model); under the norms ``norm0``, ``norm1``, ... if the model was
          made with ``output_norms=True``. `feature_info` has their channels and strides.

        Raises:
          ValueError: as for a call.
        """
        outputs = self.config.outputs
        maps = self._run(images, rngs, outputs[-1] + 1)
        if not self.config.output_norms:
            return [maps[i] for i in outputs]
        return [getattr(self, f"norm{i}")(maps[i]) for i in outputs]

    def _run(self, images: Array, rngs: nnx.Rngs | None, count: int) -> list[Array]:
        """The maps of the first levels."""
        config = self.config
        rates = {x: getattr(config, x) for x in ("drop_path", "dropout", "attn_dropout")}
        rngs = self._rngs_in_use(rngs, **rates)
        x = self.patch_embed(self._checked(images))
        self._check_map(images.shape[1:3], x.shape[1:3])
        maps = []
        for blocks, downsample in self._levels()[:count]:
            for block in blocks:
                x = run_block(block, x, rngs, remat=self.remat)
            maps.append(x)
            if downsample is not None and len(maps) < count:
                x = downsample(x)
        return maps

    def pooled(
        self, images: Float[Array, "B H W I"], rngs: nnx.Rngs | None = None
    ) -> Float[Array, "B C"]:
        """What the classifier sees: the last map, normalised and averaged over positions.

        Args:
          images: normalised images of any size.
          rngs: as for a call.

        Raises:
          ValueError: the model has no final norm (``features_only=True``, or ``output_norms=True``
            and ``num_classes=0``); otherwise as for a call.
        """
        if self.norm is None:
            raise ValueError(
                "pooled features need the final norm, which a model with features_only=True, or "
                "output_norms=True and num_classes=0, does not have; use features(), or other "
                "options"
            )
        return jnp.mean(self.norm(self.maps(images, rngs)[-1]), axis=(1, 2))

    def __call__(
        self, images: Float[Array, "B H W I"], rngs: nnx.Rngs | None = None
    ) -> Float[Array, "B classes"] | list[Float[Array, "B _Hi _Wi _Ci"]]:
        """Logits, or pooled features of a model with ``num_classes=0``.

        A model with ``features_only=True`` returns what ``features()`` does.

        Args:
          images: normalised images of any size.
          rngs: streams ``droppath`` and ``dropout`` of a training step, as far as their rates are
            not 0; None means evaluation. `natjax.nn.mode.Module` has what ``train()`` and
            ``eval()`` do.

        Returns:
          Logits in float32 (float64 for a float64 model).

        Raises:
          ValueError: images of another rank, dtype or number of channels, or of a size that the
            model cannot take; no ``rngs`` after ``train()``.
        """
        if self.config.features_only:
            return self.features(images, rngs)
        x = self.pooled(images, rngs)
        return x if self.head is None else self.head(x)

    def _checked(self, images: Array) -> Array:
        channels = self.config.in_channels
        if not all(isinstance(size, int) for size in images.shape[1:]):
            raise ValueError(
                "images must have known sizes along all dimensions but the batch; got"
                f" {images.shape}: export a program for each size of image"
            )
        if images.ndim != 4 or images.shape[-1] != channels or 0 in images.shape:
            raise ValueError(
                f"images must have shape [batch, height, width, {channels}], none of them 0; got "
                f"{images.shape}"
            )
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise ValueError(f"images must be floats, normalised; got {images.dtype.name}")
        return images.astype(self.dtype)
