"""Which implementation and settings a call gets on the present device, and why."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from natjax.kernels import api, device, registry
from natjax.kernels.spec import Op
from natjax.kernels.tuning import settings as tuning
from natjax.kernels.tuning.settings import Resolved

_SUFFIX = {"attention": "", "qk": "_qk", "av": "_av"}
_ARRAYS = (jax.Array, np.ndarray, jax.ShapeDtypeStruct)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Explanation:
    """How a call is carried out; ``str`` of it is a readable table.

    Attributes:
      op: name of the op.
      device: kind of the device.
      chosen: the implementation that runs the call, or None where the one named declines.
      reasons: why each other implementation does not, by name.
      settings: what the chosen one's kernels are compiled with, forward and backward; empty where
        it has none.
    """

    op: str
    device: str
    chosen: str | None
    reasons: dict[str, str]
    settings: tuple[Resolved, ...]

    def __str__(self) -> str:
        """The implementation, the settings of its kernels, and the reasons against the others."""
        runs = f'implementation "{self.chosen}"' if self.chosen else "no implementation"
        lines = [f"{self.op} on {self.device}: {runs}"]
        if self.settings:
            lines += _columns([_HEADER, *map(_row, self.settings)])
        lines += _columns([(f'not "{name}":', reason) for name, reason in self.reasons.items()])
        return "\n".join(lines)


_HEADER = ("kernel", "tile", "chunk", "warps", "stages", "from")


def _row(resolved: Resolved) -> tuple[str, ...]:
    config = resolved.config
    tile, chunk = ("x".join(map(str, sides)) for sides in (config.tile, config.chunk))
    warps, stages = str(config.num_warps), str(config.num_stages)
    return resolved.kernel, tile, chunk, warps, stages, resolved.source


def _columns(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  " + "  ".join(f"{x:{n}}" for x, n in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def explain(*args: Any, op: Op = "attention", **kwargs: Any) -> Explanation:
    """Tell which implementation runs a call on the present device, and why no other does.

    Nothing is computed: the call is traced, as under `jax.eval_shape`. An implementation is asked
    only if those before it decline, as in the call itself; name one to ask it alone.

    Args:
      *args: arguments of `na1d`, `na2d` or `na3d`, arrays or `jax.ShapeDtypeStruct`; their
        dimensions tell which.
      op: "attention"; or "qk" or "av" for the arguments of ``na*_qk`` and ``na*_av``.
      **kwargs: keyword arguments of the op, ``implementation`` included.

    Raises:
      ValueError: an argument breaks its rule, as in the op.

    >>> import jax, natjax
    >>> query = key = value = jax.ShapeDtypeStruct((8, 56, 56, 2, 32), "float32")
    >>> print(natjax.explain(query, key, value, kernel_size=7))  # doctest: +ELLIPSIS
    na2d on cpu: implementation "xla"
      not "jax_triton":     implementation "jax_triton" needs ...
      not "pallas_triton":  implementation "pallas_triton" needs an NVIDIA GPU, Ampere or later; ...
      not "mosaic_gpu":     not asked: it has never run on a GPU, and runs only where it is named
      not "mosaic_tpu":     implementation "mosaic_tpu" needs a TPU; ...
      not "reference":      not asked: "xla" comes first
    """
    call = _Request.of(op, args, kwargs)
    named = kwargs.get("implementation")
    if named is not None:
        named = registry.canonical(named)
    chosen: str | None = None
    settings: tuple[Resolved, ...] = ()
    reasons = {}
    for name in (x.name for x in registry.IMPLEMENTATIONS):
        if name not in registry.available():
            reasons[name] = "its module is not there"
        elif named is None and registry.available()[name].by_name_only:
            reasons[name] = "not asked: it has never run on a GPU, and runs only where it is named"
        elif named not in (None, name):
            reasons[name] = f'not asked: the call names "{named}"'
        elif chosen is not None:
            reasons[name] = f'not asked: "{chosen}" comes first'
        else:
            try:
                settings = call.ask(name)
                chosen = name
            except NotImplementedError as error:
                reasons[name] = str(error)
    return Explanation(
        op=call.name, device=device.kind(), chosen=chosen, reasons=reasons, settings=settings
    )


@dataclasses.dataclass(frozen=True)
class _Request:
    """A call of a public op, its arguments by position or by name."""

    op: Op
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @classmethod
    def of(cls, op: Op, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Request:
        if op not in _SUFFIX:
            raise ValueError(f"op must be one of {tuple(_SUFFIX)}; got {op!r}")
        what = "weights" if op == "av" else "query"
        first = args[0] if args else kwargs.get(what)
        ndim = getattr(first, "ndim", 0) - 3
        if ndim not in (1, 2, 3):
            shape = getattr(first, "shape", first)
            raise ValueError(f"{what} must be an array of 4, 5 or 6 dimensions; got {shape}")
        return cls(op, f"na{ndim}d{_SUFFIX[op]}", args, kwargs)

    def ask(self, implementation: str) -> tuple[Resolved, ...]:
        """Trace the call on an implementation; returns the settings of its kernels."""
        kwargs = {**self.kwargs, "implementation": implementation}
        leaves, structure = jax.tree.flatten((self.args, kwargs), is_leaf=lambda x: x is None)
        places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, _ARRAYS)]

        def run(*arrays: jax.Array) -> Any:
            filled = leaves.copy()
            for place, array in zip(places, arrays, strict=True):
                filled[place] = array
            args, kwargs = jax.tree.unflatten(structure, filled)
            return getattr(api, self.name)(*args, **kwargs)

        with tuning.watching() as seen:
            jax.eval_shape(run, *(leaves[place] for place in places))
        return tuple({x.kernel: x for x in seen}.values())
