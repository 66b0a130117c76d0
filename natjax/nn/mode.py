"""What modules have in common: training and evaluation without random numbers of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flax import nnx


class Module(nnx.Module):
    """A module that draws its random numbers from the ``rngs`` of a call.

    ``rngs`` makes a call a training call, and without it nothing is dropped. ``train()`` and
    ``eval()``, and ``nnx.view(module, deterministic=...)``, fix which of the two calls there may
    be: after ``train()`` a call that has something to drop needs ``rngs``; after ``eval()`` nothing
    is dropped, whatever the call is given.

    Attributes:
      deterministic: None until one of them was called; then whether nothing is dropped.
    """

    deterministic: bool | None = None

    def set_view(self, deterministic: bool | None = None) -> None:
        """Set the mode, as `flax.nnx.view` does.

        Args:
          deterministic: whether nothing is dropped; None changes nothing.
        """
        if deterministic is not None:
            self.deterministic = deterministic

    def _rngs_in_use(self, rngs: nnx.Rngs | None, **rates: float) -> nnx.Rngs | None:
        """What to draw from: None where nothing is to be dropped.

        Args:
          rngs: of the call.
          **rates: rate of what is dropped, by its name.

        Raises:
          ValueError: training mode, something to drop and no rngs.
        """
        if self.deterministic:
            return None
        drops = [f"{name}={rate}" for name, rate in rates.items() if rate > 0]
        if rngs is None and self.deterministic is False and drops:
            raise ValueError(
                f"rngs must be given to a call after train(), to draw what {' and '.join(drops)} "
                "drop: model(x, rngs=nnx.Rngs(droppath=0, dropout=1)), with new keys in each step;"
                " call eval() to drop nothing"
            )
        return rngs


class HasSummary:
    """What a whole model tells of itself."""

    def summary(self, image_size: int | Sequence[int] | None = None) -> Any:
        """Parameters and FLOPs, counted as in `natjax.model_summary`.

        Args:
          image_size: height and width, or both at once; None is the model's own, for segmentors and
            detectors what the papers quote.

        Raises:
          ValueError: a size that is not positive or that the model cannot take.

        >>> import natjax
        >>> from flax import nnx
        >>> natjax.create_model("nat_micro", num_classes=10, rngs=nnx.Rngs(0)).summary().parameters
        213150
        """
        from natjax.summary import model_summary  # here, as it imports all models

        return model_summary(self, image_size)
