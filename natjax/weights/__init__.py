"""Weights of published models: found, read, renamed, written.

`load_weights`, `save_weights` and `convert_weights` are the way in. A file goes through
`natjax.weights.files` (what is in it), `natjax.weights.state_dict` (whose names these are),
`natjax.weights.fit` (how they lie beside a model) and `natjax.weights.load`. The names themselves
are tables, in `natjax.weights.tables`; the published files, in `natjax.weights.published`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from natjax.weights.convert import convert_weights as convert_weights
    from natjax.weights.errors import WeightsError as WeightsError
    from natjax.weights.fit import MismatchError as MismatchError
    from natjax.weights.load import load_weights as load_weights
    from natjax.weights.published import PUBLISHED as PUBLISHED
    from natjax.weights.published import published_weights as published_weights
    from natjax.weights.report import LoadReport as LoadReport
    from natjax.weights.save import save_weights as save_weights

_HOME = {
    "convert_weights": "convert",
    "WeightsError": "errors",
    "MismatchError": "fit",
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
