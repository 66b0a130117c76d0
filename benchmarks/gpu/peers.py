"""Attention of others in JAX, for problems that it can express; elsewhere it says why not.

What is imported is looked up when a problem is compiled, so that it need not be installed:
fa4-jax (MIT, BSD-3-Clause and Apache-2.0) and tokamax (Apache-2.0).
"""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from natjax.kernels.tuning.problems import Problem

type Arrays = dict[str, Array]

# The most tokens whose masks of all pairs are laid out.
_MOST_DENSE = 8192


def cudnn(problem: Problem, arrays: Arrays) -> Array:
    """Full attention, which takes no bias: more work than the neighborhood's, and less."""
    query, key, value = _tokens(problem, arrays)
    out = jax.nn.dot_product_attention(query, key, value, implementation="cudnn")
    return out.reshape(arrays["query"].shape)


def tokamax(problem: Problem, arrays: Arrays) -> Array:
    """Tokamax's attention, with mask and bias of all pairs of tokens.

    Raises:
      NotImplementedError: there are too many pairs.
    """
    hood = problem.neighborhood
    if hood.num_tokens > _MOST_DENSE:
        raise NotImplementedError(
            f"a mask of all pairs is for {_MOST_DENSE} tokens at most; got {hood.num_tokens}"
        )
    library: Any = importlib.import_module("tokamax")
    bias = None
    if "rpb" in arrays:
        index = hood.dense_bias_index()
        bias = arrays["rpb"][:, *(jnp.asarray(x) for x in index)][None]
    mask = jnp.asarray(hood.dense_mask())[None, None]
    out = library.dot_product_attention(*_tokens(problem, arrays), bias=bias, mask=mask)
    return out.reshape(arrays["query"].shape)


def fa4(problem: Problem, arrays: Arrays) -> Array:
    """FlashAttention-4 by fa4-jax, with a mask function.

    Raises:
      NotImplementedError: there is a bias, which it does not take.
    """
    if "rpb" in arrays:
        raise NotImplementedError("fa4-jax takes a mask function and no bias")
    library: Any = importlib.import_module("fa4_jax")
    starts, ends = tables(problem)
    mask = _mask_of(library, problem)(*map(jnp.asarray, (starts, ends)))
    out = library.flash_attn(*_tokens(problem, arrays), mask_mod=mask)
    return out.reshape(arrays["query"].shape)


def tables(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """First key of each position along each axis, and one past the last, one axis after another."""
    axes = problem.neighborhood.axes
    starts = [np.asarray(a.start(np.arange(a.length)), np.int32) for a in axes]
    ends = [np.asarray(a.end(np.arange(a.length)), np.int32) for a in axes]
    return np.concatenate(starts), np.concatenate(ends)


def is_neighbor(problem: Problem, starts: Any, ends: Any, query: Any, key: Any) -> Any:
    """Whether a key is seen, by arithmetic that any language of mask functions has."""
    seen = query >= 0
    first = sum(a.length for a in problem.neighborhood.axes)
    for axis in reversed(problem.neighborhood.axes):
        first -= axis.length
        q, k = query % axis.length, key % axis.length
        query, key = query // axis.length, key // axis.length
        position = k // axis.dilation
        seen = seen & (k % axis.dilation == q % axis.dilation)
        seen = seen & (starts[first + q] <= position) & (position < ends[first + q])
    return seen


def _mask_of(library: Any, problem: Problem) -> Any:
    """A class of masks, whose fields are arrays that the kernel reads."""

    @dataclasses.dataclass(frozen=True)
    class Neighbors(library.MaskMod):
        starts: jax.Array
        ends: jax.Array

        def __call__(self, batch: Any, head: Any, query: Any, key: Any) -> Any:
            del batch, head
            return is_neighbor(problem, self.starts, self.ends, query, key)

    return Neighbors


def _tokens(problem: Problem, arrays: Arrays) -> list[Array]:
    return [
        arrays[name].reshape(problem.batch, -1, problem.heads, problem.head_dim)
        for name in ("query", "key", "value")
    ]
