"""Names of the classes that published models tell apart.

Those of ImageNet are WordNet's words, whose licence lies beside them; ``scripts/class-names``
writes the file. Those of COCO stand behind the numbers of its categories.
"""

from __future__ import annotations

import functools
import importlib.resources

_FILES = {"imagenet1k": "imagenet1k.txt", "coco": "coco.txt"}


@functools.cache
def labels(name: str) -> tuple[str, ...]:
    """Names of the classes of a data set, in the order of a classifier's logits.

    Args:
      name: ``"imagenet1k"``, whose 1000 classes are in the order of their synset ids; or
        ``"coco"``, whose 80 are in the order of the numbers of their categories.

    Returns:
      For each class its name; of ImageNet its words in WordNet, the most usual first.

    Raises:
      ValueError: no names of such a data set.

    >>> import natjax
    >>> natjax.labels("imagenet1k")[:2]
    ('tench, Tinca tinca', 'goldfish, Carassius auratus')
    """
    if name not in _FILES:
        raise ValueError(f"name must be one of {', '.join(map(repr, _FILES))}; got {name!r}")
    text = importlib.resources.files(__name__).joinpath(_FILES[name]).read_text("utf-8")
    return tuple(line.split(" ", 1)[1] for line in text.splitlines())
