"""A choice between two functions that is made when a program is lowered: is it for one device?

A machine may have several devices, of which a program that is traced uses one, or all of them
through arrays of which tracing knows no mesh.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive, jaxpr_as_fun
from jax.interpreters import batching, mlir


def on_one_device(function: Callable[..., Any], otherwise: Callable[..., Any], *args: Any) -> Any:
    """Call ``function(*args)`` in programs for one device, ``otherwise(*args)`` in all others.

    For derivative rules to call: it has no derivative of its own.

    Args:
      function: takes and returns trees of arrays.
      otherwise: the same, with results of the same types.
      *args: trees of arrays.
    """
    leaves, tree = jax.tree.flatten(args)
    results = jax.tree.structure(jax.eval_shape(otherwise, *args))

    def flat(call: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *leaves: jax.tree.leaves(call(*jax.tree.unflatten(tree, leaves)))

    closed = (jax.make_jaxpr(flat(call))(*leaves) for call in (function, otherwise))
    return jax.tree.unflatten(results, _choice.bind(*leaves, choices=tuple(closed)))


_choice = Primitive("natjax_on_one_device")
_choice.multiple_results = True


def _run(*args: Any, **params: Any) -> Any:
    return jax.jit(lambda *args: _choice.bind(*args, **params))(*args)


def _types(*_: Any, choices: Any) -> Any:
    return list(choices[1].out_avals)


def _batch(args: Any, axes: Any, *, choices: Any) -> Any:
    moved = [x if a is None else jnp.moveaxis(x, a, 0) for x, a in zip(args, axes, strict=True)]
    in_axes = [None if a is None else 0 for a in axes]
    mapped = (jax.vmap(jaxpr_as_fun(choice), in_axes=in_axes) for choice in choices)
    out = _choice.bind(*moved, choices=tuple(jax.make_jaxpr(run)(*moved) for run in mapped))
    return out, [0] * len(out)


def _lower(ctx: Any, *args: Any, choices: Any) -> Any:
    is_alone = getattr(ctx.module_context.axis_context, "num_devices", None) == 1
    chosen = jaxpr_as_fun(choices[0 if is_alone else 1])
    return mlir.lower_fun(chosen, multiple_results=True)(ctx, *args)


_choice.def_impl(_run)
_choice.def_abstract_eval(_types)
batching.primitive_batchers[_choice] = _batch
mlir.register_lowering(_choice, _lower)
