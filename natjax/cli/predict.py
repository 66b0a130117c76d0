"""What photos show, by published or other weights: ``natjax predict PHOTO --model NAME``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jax.typing import ArrayLike


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
    from flax import nnx

    import natjax

    network = natjax.create_model(model, weights=weights)
    if network.head is None:
        raise ValueError(f"weights must be of a classifier; those of {weights!r} have none")
    run = nnx.jit(lambda network, image: nnx.softmax(network(image))[0])
    names, failures = _names(network.config.num_classes), 0
    for path in images:
        try:
            image = natjax.preprocess(path, network)
        except ValueError as error:
            sys.stderr.write(f"natjax: {error}\n")
            failures += 1
            continue
        lines = (f"  {line}\n" for line in _likeliest(run(network, image), names, top))
        sys.stdout.write(f"{path}\n{''.join(lines)}")
    return 1 if failures else 0


def _likeliest(shares: ArrayLike, names: Sequence[str], top: int) -> list[str]:
    """A line for each class, the likeliest first."""
    import numpy as np

    shares = np.asarray(shares)
    best = np.argsort(-shares, kind="stable")[:top]
    return [f"{shares[i]:6.1%}  {names[i]}" for i in best]


def _names(count: int) -> Sequence[str]:
    """Names of the classes where these are ImageNet's, or else their numbers."""
    import natjax

    known = natjax.labels("imagenet1k")
    return known if len(known) == count else [f"class {i}" for i in range(count)]
