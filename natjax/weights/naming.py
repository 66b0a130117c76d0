"""Names of parameters in the places that weights come from, and the machine that applies them.

A `Naming` is a table of `Rule`s. A rule pairs templates such as ``levels.{i}.blocks.{j}.norm1`` of
the source's names with templates of ours, and says how the arrays change. Every rule goes both
ways. The tables are in `natjax.weights.tables`.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from natjax.weights.layouts import Layout, Shape

# Placeholders stand for a number; {i+1} for the number after that of {i}.
_PLACEHOLDER = re.compile(r"\{(\w)(\+1)?\}")
_NUMBER = "(0|[1-9][0-9]{0,3})"
ROOT = "{root}"

Numbers = tuple[tuple[str, int], ...]


@functools.cache
def _pattern(template: str) -> tuple[re.Pattern[str], tuple[tuple[str, int], ...]]:
    """The expression that a template's names match, and letter and offset of each placeholder."""
    texts, places = [], []
    end = 0
    for found in _PLACEHOLDER.finditer(template):
        texts.append(re.escape(template[end : found.start()]))
        places.append((found[1], 1 if found[2] else 0))
        end = found.end()
    texts.append(re.escape(template[end:]))
    return re.compile(_NUMBER.join(texts)), tuple(places)


def match_template(template: str, name: str) -> Numbers | None:
    """The numbers by which a template gives a name, or None where it does not.

    >>> match_template("levels.{i}.norm", "levels.3.norm")
    (('i', 3),)
    >>> match_template("stages.{i+1}.norm", "stages.3.norm")
    (('i', 2),)
    """
    expression, places = _pattern(template)
    found = expression.fullmatch(name)
    if found is None:
        return None
    numbers = [
        (letter, int(text) - plus)
        for (letter, plus), text in zip(places, found.groups(), strict=True)
    ]
    return None if any(number < 0 for _, number in numbers) else tuple(sorted(numbers))


def fill_template(template: str, numbers: Numbers) -> str:
    """The name that a template gives; undoes `match_template`."""
    values = dict(numbers)
    return _PLACEHOLDER.sub(lambda found: str(values[found[1]] + bool(found[2])), template)


@dataclasses.dataclass(frozen=True)
class Rule:
    """Templates of names that belong together, and how their arrays change.

    Attributes:
      theirs: of the source.
      ours: of natjax, in the order of the layout's arrays.
      layout: between the two.
    """

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    layout: Layout


class Binding(NamedTuple):
    """A rule with its numbers filled in.

    Attributes:
      theirs: names of the source.
      ours: names of natjax.
      layout: between their arrays.
    """

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    layout: Layout

    def their_shapes(self, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
        """Shape of each array of the source that gives ours.

        Args:
          shapes: shapes of our arrays by name.
        """
        ours = tuple(shapes[name] for name in self.ours)
        return dict(zip(self.theirs, self.layout.their_shapes(ours), strict=True))


@dataclasses.dataclass(frozen=True)
class Naming:
    """All names of one source.

    Attributes:
      name: of the naming.
      rules: the table; templates may begin with ``{root}``.
      marker: ending of a key that only this naming has, once per model.
      roots: what ``{root}`` may stand for.
      buffers: endings of keys that hold no weights.
    """

    name: str
    rules: tuple[Rule, ...]
    marker: str
    roots: tuple[str, ...] = ("",)
    buffers: tuple[str, ...] = ()

    def bind(self, names: Iterable[str], root: str = "") -> tuple[list[Binding], list[str]]:
        """Pair our names with theirs.

        Args:
          names: our names.
          root: what ``{root}`` stands for.

        Returns:
          The pairs, and our names that have no counterpart.
        """
        names = list(names)
        present, bindings, orphans = set(names), {}, []
        for name in names:
            found = self._find(name)
            binding = None if found is None else _fill(*found, root)
            if binding is None or not present.issuperset(binding.ours):
                orphans.append(name)
            else:
                bindings[binding.theirs] = binding
        return list(bindings.values()), orphans

    def _find(self, ours: str) -> tuple[Rule, Numbers] | None:
        for rule in self.rules:
            for template in rule.ours:
                numbers = match_template(template, ours)
                if numbers is not None:
                    return rule, numbers
        return None

    def translate(self, key: str, root: str = "") -> Binding | None:
        """What one key of the source belongs to, or None."""
        for rule in self.rules:
            for template in rule.theirs:
                numbers = match_template(template.replace(ROOT, root), key)
                if numbers is not None:
                    return _fill(rule, numbers, root)
        return None


def _fill(rule: Rule, numbers: Numbers, root: str) -> Binding:
    theirs = (fill_template(template.replace(ROOT, root), numbers) for template in rule.theirs)
    ours = (fill_template(template, numbers) for template in rule.ours)
    return Binding(tuple(theirs), tuple(ours), rule.layout)
