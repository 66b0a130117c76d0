"""Weights that a network on a backbone starts from: of a whole one, or of a backbone."""

from collections.abc import Mapping
from typing import Any

import numpy as np

import natjax
from natjax.train.errors import UserError
from natjax.weights.comparison import LoadReport
from natjax.weights.formats import read_file
from natjax.weights.load import fit_arrays, named_params
from natjax.weights.names import namings_of
from natjax.weights.published import resolve
from natjax.weights.state_dict import StateDict, find_state_dict
from natjax.weights.untrusted import WeightsError

_BACKBONE = "backbone."


def read_weights(
    source: str, name: str, model: natjax.UPerNet | natjax.MaskRCNN
) -> tuple[dict[str, np.ndarray], str]:
    """Return arrays by our names, and what was taken, in words.

    Of another number of classes, the layers that depend on it are left out. Of a classifier, what a
    backbone has not is.

    Args:
      source: A file or URL; or the name of published weights, of the model or its backbone.
      name: Of the model.
      model: The model, shapes are enough.

    Raises:
      WeightsError: the weights cannot be found or read, or do not fit.
    """
    backbone = backbone_name(name)
    file = read_file(resolve(source, [name, backbone, f"{backbone}_21k"]))
    try:
        state = find_state_dict(file, namings=namings_of(model).values())
    except WeightsError:  # of no whole network: of a backbone, or the error says of what
        arrays, report = _fit(find_state_dict(file), model.backbone, drop_head=True)
        return {f"{_BACKBONE}{key}": array for key, array in arrays.items()}, str(report)
    arrays, report = _fit(state, model, drop_head=_has_other_classes(state, model))
    return arrays, str(report)


def backbone_name(name: str) -> str:
    """Return the name of the classifier that a model stands on, or its own where there is none.

    >>> backbone_name("cascade_mask_rcnn_dinat_s_tiny")
    'dinat_s_tiny'
    """
    known = [x for x in natjax.list_models(kind="classifier") if name.endswith(f"_{x}")]
    return max(known, key=len, default=name)


def take_whole(
    arrays: Mapping[str, np.ndarray], shapes: Mapping[str, Any], source: str, what: str
) -> dict[str, np.ndarray]:
    """Return all arrays of a network in its dtypes.

    Args:
      arrays: By name.
      shapes: Of the network, by name: what has a dtype.
      source: What the arrays were read from.
      what: What they have to be of, in words.

    Raises:
      UserError: one is not there.
    """
    for name in shapes:
        if name not in arrays:
            raise UserError(f"{source} must be of {what}; it has no {name} that fits")
    return {name: arrays[name].astype(leaf.dtype) for name, leaf in shapes.items()}


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


def _has_other_classes(state: StateDict, model: object) -> bool:
    """Whether a layer that depends on the classes has another size."""
    shapes = {name: tuple(param.shape) for name, param in named_params(model).items()}
    for key, array in state.arrays.items():
        binding = state.naming.translate(key, state.root)
        if binding is None or not all(name in shapes for name in binding.ours):
            continue
        is_head = any(map(state.naming.is_head, binding.ours))
        if is_head and binding.their_shapes(shapes)[key] != array.shape:
            return True
    return False
