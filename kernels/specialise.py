"""All that is decided before a kernel is launched: whether, with which settings, which tables."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxtyping import Array

from natjax.kernels import checks, device, registry
from natjax.kernels.neighborhood import Neighborhood
from natjax.kernels.plan.pattern import table_entries
from natjax.kernels.spec import (
    CallSpec,
    Kernel,
    KernelBackend,
    KernelCall,
    Op,
    Settings,
    kernels_of,
)
from natjax.kernels.tuning import settings

# Kernels number rows of arrays, and entries of weights, by 32-bit integers.
INDEXABLE = 2**31
# The most entries of a table of blocks for all heads, 256 MiB of float32.
_LARGEST_TABLE = 2**26
# Up to which a mask is laid out in a table too, rather than computed.
_SMALL_TABLE = 2**20


def require_plain(
    name: str, neighborhood: Neighborhood, beyond: dict[str, Any], *, parts: bool = False
) -> None:
    """Check that a call is one that kernels are made for.

    Args:
      name: of the implementation whose kernels they are.
      neighborhood: the neighborhood.
      beyond: arguments that only implementations in plain JAX have, by name.
      parts: whether the kernels take axes of which a part of the tokens is at hand.

    Raises:
      NotImplementedError: an axis goes round or has a part of its tokens at hand, or an argument
        is given that kernels do not have.
    """
    given = [argument for argument, value in beyond.items() if value is not None]
    if parts and any(axis.is_circle for axis in neighborhood.axes):
        given.append("a whole periodic axis")
    if not parts and not neighborhood.is_plain:
        given.append("is_periodic, or a part of the tokens")
    if given:
        takes = "axes that are no whole circles" if parts else "whole axes between two borders"
        raise NotImplementedError(
            f'implementation "{name}" takes {takes}, without a key mask, dropout or a soft cap of '
            f'logits; got {", ".join(given)}; use implementation="xla"'
        )


def specialise(
    backend: KernelBackend,
    op: Op,
    platform: str | None,
    query: Array,
    key: Array,
    value: Array,
    neighborhood: Neighborhood,
    rpb: Array | None,
    scale: float,
) -> KernelCall:
    """The call that kernels are specialised for, if the backend takes it."""
    spec = CallSpec(
        neighborhood=neighborhood,
        head_dim=key.shape[-1],
        value_dim=value.shape[-1],
        dtype=query.dtype.name,
        has_bias=rpb is not None,
        float32_products=checks.float32_products(),
    )
    backend.supports(op, spec)
    _require_indexable(backend, op, spec, query.shape[-2])
    implementation = registry.available()[backend.NAME]
    call = KernelCall(
        launch=backend.launch,
        platform=platform,
        spec=spec,
        scale=scale,
        groups=query.shape[-2] // key.shape[-2],
        interpret=device.is_interpreted(),
        splits=not (device.is_interpreted() and implementation.interprets_in_order),
        settings=_settings(backend, op, spec),
        with_table=frozenset(),
    )
    return dataclasses.replace(call, with_table=_with_table(backend, call, query.shape[-2]))


def _settings(
    backend: KernelBackend, op: Op, spec: CallSpec
) -> tuple[tuple[Kernel, Settings], ...]:
    """The settings of each kernel that there is."""
    kind = device.kind(registry.available()[backend.NAME].platform)
    chosen: dict[Kernel, Settings] = {}
    for kernel in kernels_of(op, spec.has_bias):
        if kernel == "dbias" and chosen["dquery"].sums_bias(spec):
            continue
        chosen[kernel] = settings.resolve(backend, kernel, spec, kind)[0]
    return tuple(chosen.items())


def _require_indexable(backend: KernelBackend, op: Op, spec: CallSpec, heads: int) -> None:
    """Of one image; larger batches go in parts."""
    neighborhood = spec.neighborhood
    slots = 1 if op == "attention" else neighborhood.num_neighbors
    entries = neighborhood.num_tokens * heads * slots
    if entries >= INDEXABLE:
        raise NotImplementedError(
            f'implementation "{backend.NAME}" takes fewer than 2**31 queries an image, times '
            f"heads, and times window slots in the unfused ops; got {entries}; use "
            'implementation="xla"'
        )


def _with_table(backend: KernelBackend, call: KernelCall, heads: int) -> frozenset[Kernel]:
    """The kernels that take a table: all that add a bias, and those whose mask makes a small one.

    "av" adds nothing to logits; "qk" does not store those that are hidden, so without a bias there
    is nothing to add.
    """
    has_bias = call.spec.has_bias
    adding = ("forward", "dquery", "dkeyvalue", "dbias", *(("qk",) if has_bias else ()))
    sizes = {
        kernel: table_entries(call.blocks(kernel))
        for kernel, _ in call.settings
        if kernel in adding
    }
    if has_bias and heads * max(sizes.values()) > _LARGEST_TABLE:
        raise NotImplementedError(
            f'implementation "{backend.NAME}" takes a relative position bias where a table of what '
            f"blocks look like, for all heads, has at most {_LARGEST_TABLE} entries; got "
            f"kernel_size={call.spec.neighborhood.kernel_size} and {heads} heads; use "
            'implementation="xla"'
        )
    return frozenset(k for k, size in sizes.items() if has_bias or size <= _SMALL_TABLE)
