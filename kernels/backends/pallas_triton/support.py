"""Which calls the kernels take."""

from __future__ import annotations

from natjax.kernels.backends.triton_common.support import require
from natjax.kernels.spec import CallSpec, Op

NAME = "pallas_triton"


def supports(op: Op, spec: CallSpec) -> None:
    """Check that the kernels take a call; all ops alike.

    Raises:
      NotImplementedError: they do not; the message says what would work.
    """
    del op
    require(NAME, spec)
