"""What a function of arrays says of their dimensions, so that it can be batched and partitioned."""

from __future__ import annotations

import dataclasses
import enum


class Dim(enum.Enum):
    """What a dimension of an array is; BATCH, HEADS and KV_HEADS may be split over devices."""

    BATCH = "b"
    HEADS = "n"
    KV_HEADS = "m"
    SLOTS = "s"
    WHOLE = "w"


type Dims = tuple[Dim, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Signature:
    """Dimensions of the arrays that a function takes and returns.

    Attributes:
      operands: dimensions of each argument; the first has batch and heads of the queries.
      results: dimensions of each result; one without a batch is a sum over the batch.
    """

    operands: tuple[Dims, ...]
    results: tuple[Dims, ...]

    def taking(self, *more: Dims) -> Signature:
        """The signature of a function that takes further arguments after these."""
        return dataclasses.replace(self, operands=(*self.operands, *more))

    def giving(self, *more: Dims) -> Signature:
        """The signature of a function that returns further results after these."""
        return dataclasses.replace(self, results=(*self.results, *more))
