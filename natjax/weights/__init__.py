"""Weights of published models: found, read, renamed, written.

`load_weights`, `save_weights` and `convert_weights` are the way in (`load`, `save`). What weights
are called becomes a file in `published` (by way of `download` and its `cache`); `formats` reads it,
within the budget of `untrusted`, and `torchfile` the part of it that is a program; `state_dict`
finds the weights in it and says whose names they have; `comparison` lays them beside a model, and
`structure` tells which model they are of. The names are tables of what `names` has; they lie beside
the models (`natjax.backbones.names`).

The public names are listed in ``__init__.pyi``.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
