"""Weights that a segmentor starts from, or is evaluated with."""

import numpy as np

from natjax import UPerNet
from natjax.weights.comparison import LoadReport
from natjax.weights.formats import read_file
from natjax.weights.load import fit_arrays, named_params
from natjax.weights.names import namings_of
from natjax.weights.published import resolve
from natjax.weights.state_dict import StateDict, find_state_dict
from natjax.weights.untrusted import WeightsError

_BACKBONE = "backbone."
_CLASSIFIER = "decode_head.conv_seg.bias"


def read_weights(
    source: str, name: str, model: UPerNet, classes: int
) -> tuple[dict[str, np.ndarray], str]:
    """Return arrays by our names, and what was taken, in words.

    Args:
      source: A file or URL; or the name of published weights, of the model or its backbone.
      name: Of the model.
      model: The model, shapes are enough.
      classes: Its number of classes.

    Raises:
      WeightsError: the weights cannot be found or read, or do not fit.
    """
    backbone = name.partition("_")[2]
    file = read_file(resolve(source, [name, backbone, f"{backbone}_21k"]))
    try:
        state = find_state_dict(file, namings=namings_of(model).values())
    except WeightsError:  # of no whole segmentor: of a backbone, or the error says of what
        arrays, report = _fit(find_state_dict(file), model.backbone, drop_head=True)
        return {f"{_BACKBONE}{key}": array for key, array in arrays.items()}, str(report)
    drop_head = _classes_of(state) != classes
    arrays, report = _fit(state, model, drop_head=drop_head)
    return arrays, str(report)


def _fit(
    state: StateDict, module: object, *, drop_head: bool
) -> tuple[dict[str, np.ndarray], LoadReport]:
    params = named_params(module)
    return fit_arrays(
        state,
        {key: tuple(param.shape) for key, param in params.items()},
        integers={key for key, param in params.items() if np.issubdtype(param.dtype, np.integer)},
        drop_head=drop_head,
        resize_rpb=True,
    )


def _classes_of(state: StateDict) -> int | None:
    for key, array in state.arrays.items():
        binding = state.naming.translate(key, state.root)
        if binding is not None and binding.ours == (_CLASSIFIER,):
            return len(array)
    return None
