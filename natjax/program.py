"""A model as a compiled program's source, which runs where there is no natjax."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from natjax.kernels.checks import axis_ints
from natjax.nn.arguments import check_size
from natjax.nn.attention import NeighborhoodAttention

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def export_program(
    model: nnx.Module,
    image_size: int | Sequence[int],
    *,
    batch: int | str = "b",
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
) -> bytes:
    """A model with its weights as one StableHLO program, as `jax.export` writes it.

    It is a function of normalised images ``[batch, height, width, channels]`` in float32,
    evaluates, and holds the parameters. ``jax.export.deserialize(data).call(images)`` runs it, with
    no natjax and no Flax. Attention is that of implementation "xla", since JAX does not promise to
    read kernels later.

    Args:
      model: a classifier, backbone, segmentor or detector of natjax.
      image_size: height and width, or both at once; they must be known.
      batch: number of images; a name stands for any number.
      platforms: what it is to run on, of ``"cpu"``, ``"cuda"``, ``"rocm"`` and ``"tpu"``.

    Returns:
      The bytes to keep, of about the size of the weights. What the program returns is what the
      model does; named tuples become dicts.

    Raises:
      ValueError: no size, no number of images or name of one, or an unknown platform.
      ModuleNotFoundError: flatbuffers is missing, ``pip install 'natjax[export]'``.

    >>> import jax, jax.numpy as jnp, natjax
    >>> from flax import nnx
    >>> model = natjax.create_model("nat_micro", num_classes=5, rngs=nnx.Rngs(0))
    >>> program = jax.export.deserialize(natjax.export_program(model, 32, platforms=["cpu"]))
    >>> program.call(jnp.zeros((3, 32, 32, 3))).shape
    (3, 5)
    """
    try:
        import flatbuffers  # noqa: F401 - before the work, not after it
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "export_program needs flatbuffers: pip install 'natjax[export]'", name="flatbuffers"
        ) from error
    height, width = axis_ints("image_size", image_size, 2)
    unknown = [name for name in platforms if name not in PLATFORMS]
    if unknown or not platforms:
        raise ValueError(f"platforms must be some of {', '.join(PLATFORMS)}; got {platforms!r}")
    config = getattr(model.config, "backbone", model.config)
    shape = (_batch(batch), height, width, config.in_channels)
    evaluated = _portable(model)
    exported = jax.export.export(
        jax.jit(lambda images: _plain(evaluated(images))), platforms=tuple(platforms)
    )(jax.ShapeDtypeStruct(shape, jnp.float32))
    return bytes(exported.serialize())


def _batch(batch: int | str) -> Any:
    """A number, or what stands for any."""
    if not isinstance(batch, str):
        return check_size("batch", batch)
    if not batch.isidentifier():
        raise ValueError(f"batch must be a number or a name such as 'b'; got {batch!r}")
    return jax.export.symbolic_shape(batch)[0]


def _portable(model: nnx.Module) -> nnx.Module:
    """The model for evaluation, with attention in plain JAX."""
    copy = nnx.clone(model)
    copy.eval()
    for _, module in nnx.iter_modules(copy):
        if isinstance(module, NeighborhoodAttention):
            module.implementation = "xla"
    return copy


def _plain(result: Any) -> Any:
    """Named tuples are types of natjax, which the program's user need not have."""
    return result._asdict() if hasattr(result, "_asdict") else result
