"""What a call is to its kernels: which kernels there are, and what they are specialised for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, Protocol, runtime_checkable

import jax

from natjax.kernels.checks import Float32Products
from natjax.kernels.neighborhood import Neighborhood
from natjax.kernels.plan.blocks import Blocks, Rows
from natjax.kernels.sharding.placement import Placement

type Kernel = Literal["forward", "dquery", "dkeyvalue", "dbias", "qk", "av", "av_transposed"]
type Op = Literal["attention", "qk", "av"]

KERNELS: tuple[Kernel, ...] = (
    "forward",
    "dquery",
    "dkeyvalue",
    "dbias",
    "qk",
    "av",
    "av_transposed",
)
# Matrix products of a block, each with the width of queries and keys or that of values.
PRODUCTS: dict[Kernel, int] = {
    "forward": 2,
    "dquery": 3,
    "dkeyvalue": 4,
    "dbias": 2,
    "qk": 1,
    "av": 1,
    "av_transposed": 1,
}
# Kernels whose rows are keys; those of the others are queries.
_ROWS_ARE_KEYS = ("dkeyvalue", "av_transposed")


def kernels_of(op: Op, has_bias: bool) -> tuple[Kernel, ...]:
    """The kernels that an op and its gradients run; the gradients of either half are the other."""
    if op != "attention":
        return "qk", "av", "av_transposed"
    return "forward", "dquery", "dkeyvalue", *(("dbias",) if has_bias else ())


def rows_of(kernel: Kernel) -> Rows:
    """What the rows of a kernel's blocks are."""
    return "keys" if kernel in _ROWS_ARE_KEYS else "queries"


@dataclasses.dataclass(frozen=True, slots=True)
class CallSpec:
    """What the kernels of a call are specialised for, and their best settings depend on.

    Batch and heads are not part of it: they number the programs of a kernel and change nothing
    inside one.

    Attributes:
      neighborhood: the neighborhood.
      head_dim: size of queries and keys.
      value_dim: size of values.
      dtype: name of the dtype.
      has_bias: whether there is a relative position bias.
      float32_products: how float32 numbers are multiplied; of no account for other dtypes.
    """

    neighborhood: Neighborhood
    head_dim: int
    value_dim: int
    dtype: str
    has_bias: bool
    float32_products: Float32Products = "float32"

    @property
    def products(self) -> Float32Products | None:
        """How float32 numbers are multiplied, if the call has any."""
        return self.float32_products if self.dtype == "float32" else None

    @property
    def key(self) -> str:
        """Name in a table of tuned settings."""
        axes = ",".join(
            f"{a.length}k{a.kernel_size}s{a.stride}d{a.dilation}{'c' if a.is_causal else ''}"
            for a in self.neighborhood.axes
        )
        bias = "-bias" if self.has_bias else ""
        return f"{axes}-{self.head_dim}-{self.value_dim}-{self.products or self.dtype}{bias}"


@runtime_checkable  # for the shape checks of the tests
class Settings(Protocol):
    """What a kernel is compiled with: a frozen dataclass that checks its values.

    A backend's own has more than the sides of blocks.
    """

    @classmethod
    def suggest(cls, kernel: Kernel, spec: CallSpec) -> Settings:
        """The settings of a kernel by rule of thumb."""
        ...

    @property
    def tile(self) -> tuple[int, ...]:
        """Rows of a block along each token axis."""
        ...

    @property
    def chunk(self) -> tuple[int, ...]:
        """Columns of a block along each token axis."""
        ...

    @property
    def whole_chunks(self) -> bool:
        """Whether the chunks of a slab should end inside the axis; see `Blocks.of`."""
        ...

    def sums_bias(self, spec: CallSpec) -> bool:
        """Whether "dquery" with these settings sums the gradient of the bias as well.

        Then there is no kernel "dbias".
        """
        ...


def blocks_of(kernel: Kernel, settings: Settings, neighborhood: Neighborhood) -> Blocks:
    """The blocks of a neighborhood that a kernel with these settings works on.

    Raises:
      ValueError: tiles and chunks have not one side for each axis of the neighborhood.
    """
    return Blocks.of(
        neighborhood,
        rows_of(kernel),
        settings.tile,
        settings.chunk,
        whole_chunks=settings.whole_chunks,
    )


@runtime_checkable
class KernelBackend(Protocol):
    """What a backend of kernels has: a folder of ``natjax.kernels.backends`` with these names.

    Attributes:
      NAME: the name of the implementation.
      settings: the class of what a kernel is compiled with.
    """

    NAME: str
    settings: type[Settings]

    def supports(self, op: Op, spec: CallSpec) -> None:
        """Raise `NotImplementedError`, saying what would work, unless the kernels take a call.

        Args:
          op: which op.
          spec: what its kernels are specialised for.
        """
        ...

    def launch(self, kernel: Kernel, call: KernelCall, *arrays: jax.Array) -> tuple[jax.Array, ...]:
        """Run a kernel; `natjax.kernels.kernel_ops` has what each takes and returns."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class KernelCall:
    """A call with all that is decided before its kernels are launched.

    Attributes:
      launch: runs a kernel of the backend (`natjax.kernels.registry.KernelBackend`).
      platform: the only one, as JAX lowers for it, on which to run kernels; None for any.
      spec: what the kernels are specialised for.
      scale: factor on the products of queries and keys.
      groups: query heads for each key head.
      interpret: whether kernels run interpreted.
      splits: whether a launch may be split over devices.
      settings: what each kernel is compiled with.
      with_table: kernels that take what to add to the logits from a table of blocks; the others
        compute a mask instead.
      placement: where the arrays are on a mesh; None for kernels that the compiler partitions.
    """

    launch: Callable[..., tuple[jax.Array, ...]]
    platform: str | None
    spec: CallSpec
    scale: float
    groups: int
    interpret: bool
    splits: bool
    settings: tuple[tuple[Kernel, Any], ...]
    with_table: frozenset[Kernel]
    placement: Placement | None = None

    def config(self, kernel: Kernel) -> Any:
        """The settings of a kernel."""
        return dict(self.settings)[kernel]

    @property
    def sums_bias(self) -> bool:
        """Whether the kernel "dquery" sums the gradient of the bias as well."""
        return self.spec.has_bias and self.config("dquery").sums_bias(self.spec)

    def blocks(self, kernel: Kernel) -> Blocks:
        """The blocks that a kernel works on."""
        return blocks_of(kernel, self.config(kernel), self.spec.neighborhood)
