"""Which calls the kernels for large windows take, and which of those they are best for."""

from __future__ import annotations

import dataclasses
import functools

from natjax.kernels.backends.mosaic_tpu.large.walk import Walk
from natjax.kernels.backends.mosaic_tpu.layout import LANES, round_up
from natjax.kernels.backends.mosaic_tpu.memory import layout_of, padded_head_dim
from natjax.kernels.spec import CallSpec

# What lies in the memory of a core all the time: the plan, in scalar memory, and what there is one
# of for each query.
_PLAN_BYTES = 2**19
_ROWS_BYTES = 2**23
# Masks, in the memory of the device.
_MASK_BYTES = 2**27
# The biases of a step, which are there twice; and the gradient of their whole table.
_BIAS_BYTES = 2**22
_BIAS_SUMS_BYTES = 2**25
# What a vector of logits costs these kernels, forward and backward, over what it costs those that
# have whole maps in memory; from bundles of both, compiled for a v5e
# (`python -m benchmarks.aot.tpu.walks`).
_COST = 0.85


@dataclasses.dataclass(frozen=True)
class Walks:
    """How the kernels of a call go over its tokens.

    Attributes:
      queries: with tiles of queries.
      keys: with tiles of keys.
    """

    queries: Walk
    keys: Walk


@functools.lru_cache(256)
def walks_of(spec: CallSpec, heads: int) -> Walks:
    """The walks of a call.

    Raises:
      ValueError: the kernels do not take it.
    """
    make = functools.partial(
        Walk.of, heads=heads, head_dim=padded_head_dim(spec), has_bias=spec.has_bias
    )
    walks = Walks(make(spec.neighborhood, "queries"), make(spec.neighborhood, "keys"))
    for walk in (walks.queries, walks.keys):
        _require_fit(walk)
    biases = walks.queries.biases
    if biases is not None and 4 * biases.size(walks.queries.heads) > _BIAS_SUMS_BYTES:
        raise ValueError("the gradient of the table of biases does not fit the memory of a core")
    return walks


def _require_fit(walk: Walk) -> None:
    plan = walk.num_steps * walk.num_fields * 4
    rows = walk.heads * walk.num_tiles * round_up(walk.num_rows, LANES) * 4
    if plan > _PLAN_BYTES or rows > _ROWS_BYTES:
        raise ValueError(
            "the plan of the kernels for large windows does not fit the memory of a core"
        )
    if walk.mask_bytes > _MASK_BYTES:
        raise ValueError("the masks of the kernels for large windows take too much memory")
    if walk.biases is not None and 4 * walk.biases.block_size(walk.heads) > _BIAS_BYTES:
        raise ValueError("the biases of a step do not fit the memory of a core")


def prefers_large(spec: CallSpec, heads: int) -> bool:
    """Whether a call is for the kernels for large windows, where either kind takes it."""
    try:
        walks = walks_of(spec, heads)
    except ValueError:
        return False
    try:
        layout = layout_of(spec, heads)
    except ValueError:
        return True
    return _COST * (walks.queries.work + walks.keys.work) / 2 < layout.work
