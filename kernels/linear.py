"""A linear function whose transpose is given instead of derived: a primitive of JAX.

`jax.custom_vjp` has no forward mode, and `jax.custom_jvp` lets JAX derive the transpose of its
rule. ``jax.custom_derivatives.linear_call`` would be the thing, but can neither be vmapped nor
differentiated in what it is not linear in. This one can: in forward mode it is the function, in
reverse mode the transpose that was given, and its own derivatives are those of the function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

type Arrays = tuple[jax.Array, ...]


def linear_call(
    function: Callable[[Arrays, Arrays], Arrays],
    transpose: Callable[[Arrays, Arrays], Arrays],
    constants: Sequence[jax.Array],
    arguments: Sequence[jax.Array],
    like: Sequence[jax.Array],
) -> Arrays:
    """Call ``function(constants, arguments)``, which is linear in the arguments.

    Args:
      function: the function, of any derivatives.
      transpose: ``(constants, cotangents of results) -> cotangents of arguments``.
      constants: what both take besides.
      arguments: what the function is linear in, at least one.
      like: arrays with the types of the results.
    """
    return tuple(
        _linear.bind(
            *constants,
            *arguments,
            function=function,
            transpose=transpose,
            num_constants=len(constants),
            results=tuple(map(jax.typeof, like)),
        )
    )


_linear = Primitive("natjax_linear")
_linear.multiple_results = True


def _run(*args: Any, function: Any, num_constants: int, **_: Any) -> Arrays:
    return function(args[:num_constants], args[num_constants:])


def _types(*_: Any, results: Any, **__: Any) -> Any:
    return list(results)


def _jvp(primals: Any, tangents: Any, **params: Any) -> Any:
    n = params["num_constants"]
    out = _linear.bind(*primals, **params)
    if all(isinstance(t, ad.Zero) for t in tangents[:n]):
        moved = map(ad.instantiate_zeros, tangents[n:])
        return out, _linear.bind(*primals[:n], *moved, **params)
    run = lambda *args: _run(*args, **params)  # noqa: E731
    return out, list(jax.jvp(run, primals, tuple(map(ad.instantiate_zeros, tangents)))[1])


def _transpose(cotangents: Any, *args: Any, transpose: Any, num_constants: int, **_: Any) -> Any:
    constants, arguments = args[:num_constants], args[num_constants:]
    results = transpose(constants, tuple(map(ad.instantiate_zeros, cotangents)))
    wanted = (
        result if ad.is_undefined_primal(x) else None
        for result, x in zip(results, arguments, strict=True)
    )
    return [*[None] * num_constants, *wanted]


def _batch(args: Any, axes: Any, *, num_constants: int, **params: Any) -> Any:
    size = next(x.shape[a] for x, a in zip(args, axes, strict=True) if a is not None)
    args = [x if a is None else jnp.moveaxis(x, a, 0) for x, a in zip(args, axes, strict=True)]
    # The cotangent of an argument that is the same for all is the sum of theirs.
    arguments = [
        jnp.broadcast_to(x, (size, *x.shape)) if a is None else x
        for x, a in zip(args[num_constants:], axes[num_constants:], strict=True)
    ]
    mapped = tuple(None if a is None else 0 for a in axes[:num_constants])
    function, transpose = (
        jax.vmap(params[name], in_axes=(mapped, 0), axis_size=size)
        for name in ("function", "transpose")
    )
    constants = tuple(args[:num_constants])
    results = jax.make_jaxpr(function)(constants, tuple(arguments)).out_avals
    out = _linear.bind(
        *constants,
        *arguments,
        function=function,
        transpose=transpose,
        num_constants=num_constants,
        results=tuple(results),
    )
    return out, [0] * len(out)


_linear.def_impl(_run)
_linear.def_abstract_eval(_types)
ad.primitive_jvps[_linear] = _jvp
ad.primitive_transposes[_linear] = _transpose
batching.primitive_batchers[_linear] = _batch
mlir.register_lowering(_linear, mlir.lower_fun(_run, multiple_results=True))
