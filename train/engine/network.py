"""A Flax NNX model as pure functions over flat dicts of parameters and statistics.

Split once, here; the rest of training is plain JAX. The dicts' keys are the attribute paths joined
by dots (``levels.0.blocks.1.attn.qkv.kernel``), which is also how checkpoints name arrays.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from flax import nnx

Params = dict[str, jax.Array]
Statistics = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Network:
    """A network without its values.

    Parameters are what the loss is differentiated by. Statistics are all other variables, such as
    the running means of batch normalisation, which a call in training changes. Under `jax.jit` a
    batch is one array over all devices, so means over it are over all devices, too.

    Attributes:
      init: ``() -> (params, statistics)``, to be jitted.
      apply: ``(params, statistics, *arguments, train=False, method="__call__", **options) ->
        (outputs, statistics)``. Without `train` the network evaluates (``model.eval()``), and its
        statistics stay. A `method` that is no name is a function, called with the model first.
    """

    init: Callable[[], tuple[Params, Statistics]]
    apply: Callable[..., tuple[Any, Statistics]]


def split_network(build: Callable[[], nnx.Module]) -> Network:
    """Split a model into pure functions, without computing any parameter.

    Args:
      build: Makes the model, with its random numbers fixed.

    Raises:
      ValueError: the model keeps random state; keys must come with each call, so that a step is a
        function of seed and step.
    """
    graph, state = nnx.split(nnx.eval_shape(build))
    paths = {_join(path): path for path, _ in nnx.to_flat_state(state)}
    kinds = {_join(path): type(leaf) for path, leaf in nnx.to_flat_state(state)}
    random = [name for name, kind in kinds.items() if issubclass(kind, nnx.RngState)]
    if random:
        raise ValueError(
            f"a model must keep no random state, got {random[0]}: hand rngs to its call instead"
        )

    def init() -> tuple[Params, Statistics]:
        return _values(nnx.state(build()))

    def apply(
        params: Params,
        statistics: Statistics,
        *args: Any,
        train: bool = False,
        method: str | Callable[..., Any] = "__call__",
        **options: Any,
    ) -> tuple[Any, Statistics]:
        values = (params | statistics).items()
        leaves = [(paths[name], kinds[name](value)) for name, value in values]
        model = nnx.merge(graph, nnx.from_flat_state(leaves))
        if train:
            model.train()
        else:
            model.eval()
        call = getattr(model, method) if isinstance(method, str) else partial(method, model)
        outputs = call(*args, **options)
        return outputs, _values(nnx.state(model))[1] if train else statistics

    return Network(init, apply)


def _values(state: Any) -> tuple[Params, Statistics]:
    params: Params = {}
    statistics: Statistics = {}
    for path, leaf in nnx.to_flat_state(state):
        chosen = params if isinstance(leaf, nnx.Param) else statistics
        chosen[_join(path)] = leaf.get_value()
    return params, statistics


def _join(path: tuple[Any, ...]) -> str:
    return ".".join(map(str, path))
