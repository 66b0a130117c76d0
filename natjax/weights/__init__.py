"""Weights of published models: found, read, renamed, written.

`load_weights`, `save_weights` and `convert_weights` are the way in. What weights are called becomes
a file in `published` (by way of `download`); `files` reads it, within the budget of `source`, and
`torchfile` the part of it that is a program; `state_dict` finds the weights in it and says whose
names they have; `report` lays them beside a model, and `load` fills it. The names are tables, in
`tables`, made of what `names` has.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from natjax.weights.convert import convert_weights as convert_weights
    from natjax.weights.errors import WeightsError as WeightsError
    from natjax.weights.load import load_weights as load_weights
    from natjax.weights.published import PUBLISHED as PUBLISHED
    from natjax.weights.published import published_weights as published_weights
    from natjax.weights.report import LoadReport as LoadReport
    from natjax.weights.report import MismatchError as MismatchError
    from natjax.weights.save import save_weights as save_weights

_HOME = {
    "convert_weights": "convert",
    "WeightsError": "errors",
    "MismatchError": "report",
    "load_weights": "load",
    "PUBLISHED": "published",
    "published_weights": "published",
    "LoadReport": "report",
    "save_weights": "save",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'natjax.weights' has no attribute {name!r}")
    return getattr(importlib.import_module(f"natjax.weights.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
