"""Weights of published models: found, read, renamed, written.

`load_weights`, `save_weights` and `convert_weights` are the way in. What weights are called becomes
a file in `published` (by way of `download`); `files` reads it, within the budget of `source`, and
`torchfile` the part of it that is a program; `state_dict` finds the weights in it and says whose
names they have; `report` lays them beside a model, and `load` fills it. The names are tables, in
`tables`, made of what `names` has.

The public names are listed in ``__init__.pyi``.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
