"""What photos show, by published or other weights: ``natjax predict PHOTO --model NAME``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import natjax


def predict_photos(images: Sequence[Path], *, model: str, weights: str, top: int) -> int:
    """Print the likeliest classes of image files; unreadable ones are named.

    Args:
      images: files.
      model: name of the model.
      weights: as for `natjax.create_model`.
      top: classes shown for each image.

    Returns:
      The exit code: 1 if an image could not be read.

    Raises:
      ValueError: no such model, or weights that cannot be used.
    """
    import natjax

    network = natjax.create_model(model, weights=weights)
    if network.head is None:
        raise ValueError(f"weights must be of a classifier; those of {weights!r} have none")
    failures = 0
    for path in images:
        try:
            text = "\n".join(f"  {line}" for line in _likeliest(network, path, top))
            sys.stdout.write(f"{path}\n{text}\n")
        except ValueError as error:
            sys.stderr.write(f"natjax: {error}\n")
            failures += 1
    return 1 if failures else 0


def _likeliest(network: natjax.NAT | natjax.Isotropic, path: Path, top: int) -> list[str]:
    """A line for each class, the likeliest first."""
    import jax
    import numpy as np
    from flax import nnx

    import natjax

    logits = nnx.jit(lambda model, x: model(x))(network, natjax.preprocess(path, network))
    shares = np.asarray(jax.nn.softmax(logits[0]))
    names = _names(network.config.num_classes)
    best = np.argsort(-shares, kind="stable")[:top]
    return [f"{shares[i]:6.1%}  {names[i]}" for i in best]


def _names(count: int) -> Sequence[str]:
    """Names of the classes where these are ImageNet's, or else their numbers."""
    import natjax

    known = natjax.labels("imagenet1k")
    return known if len(known) == count else [f"class {i}" for i in range(count)]
