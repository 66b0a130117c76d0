"""Names of parameters in the places that weights come from, and how the arrays there are laid out.

A `Naming` is a table of `Rule`s. A rule pairs templates such as ``levels.{i}.blocks.{j}.norm1`` of
the source's names with templates of ours, and says how the arrays change. Every rule goes both
ways. Tables compose: those of a detector are its backbone's behind a prefix, and its heads' rules.
The tables lie beside the models, in `natjax.backbones.names` and in the folders of `natjax.dense`.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from natjax.weights.untrusted import WeightsError

if TYPE_CHECKING:
    from flax import nnx

Arrays = tuple[np.ndarray, ...]
Shape = tuple[int, ...]
Numbers = tuple[tuple[str, int], ...]

# Placeholders stand for a number; {i+1} for the number after that of {i}.
_PLACEHOLDER = re.compile(r"\{(\w)(\+1)?\}")
_NUMBER = "(0|[1-9][0-9]{0,3})"
ROOT = "{root}"


@dataclasses.dataclass(frozen=True)
class Layout:
    """How arrays of a source become arrays of ours, and back.

    A tuple of arrays goes to a tuple of arrays, as views wherever possible: nothing is computed but
    copies, so that going there and back gives the same bits.

    Attributes:
      name: for tables.
      to_ours: from the source's arrays to ours.
      to_theirs: the inverse.
    """

    name: str
    to_ours: Callable[[Arrays], Arrays]
    to_theirs: Callable[[Arrays], Arrays]

    def their_shapes(self, ours: tuple[Shape, ...]) -> tuple[Shape, ...]:
        """Shapes of the source's arrays, from those of ours."""
        # Arrays that take one byte, whatever their shape.
        arrays = (np.broadcast_to(np.zeros((), np.int8), shape) for shape in ours)
        return tuple(array.shape for array in self.to_theirs(tuple(arrays)))


def permuted(name: str, axes: tuple[int, ...]) -> Layout:
    """The layout of one array whose axes change places.

    Args:
      name: for tables.
      axes: axis of the source's array for each axis of ours.
    """
    back = tuple(int(axis) for axis in np.argsort(axes))
    return Layout(
        name,
        lambda arrays: tuple(x.transpose(axes) for x in arrays),
        lambda arrays: tuple(x.transpose(back) for x in arrays),
    )


# The same in both.
SAME = Layout("as is", lambda arrays: arrays, lambda arrays: arrays)
# An integer, which PyTorch keeps in 64 bits.
COUNT = Layout(
    "count", lambda arrays: arrays, lambda arrays: tuple(x.astype(np.int64) for x in arrays)
)
# A linear layer: [out, in] and [in, out].
LINEAR = permuted("transposed", (1, 0))
# A convolution: [out, in, height, width] and [height, width, in, out].
CONV = permuted("OIHW to HWIO", (2, 3, 1, 0))
# Query, key and value, three linear layers [C, C], and one [C, 3C].
QKV_KERNEL = Layout(
    "joined, transposed",
    lambda arrays: (np.concatenate(arrays, axis=0).T,),
    lambda arrays: tuple(x.T for x in np.split(arrays[0], 3, axis=1)),
)
QKV_BIAS = Layout(
    "joined",
    lambda arrays: (np.concatenate(arrays),),
    lambda arrays: tuple(np.split(arrays[0], 3, axis=0)),
)
# Rows of one matrix, and one vector each.
ROWS = Layout("rows apart", lambda arrays: tuple(arrays[0]), lambda arrays: (np.stack(arrays),))


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


def weight_and_bias(
    theirs: str, ours: str, layout: Layout, weight: str = "kernel"
) -> tuple[Rule, ...]:
    """Rules of a layer with a weight and a bias; a bias that a model lacks is of no matter.

    Args:
      theirs: name of the layer in the source.
      ours: name of the layer here.
      layout: of the weight.
      weight: what the weight is called here.
    """
    return (
        Rule((f"{theirs}.weight",), (f"{ours}.{weight}",), layout),
        Rule((f"{theirs}.bias",), (f"{ours}.bias",), SAME),
    )


def norm(theirs: str, ours: str) -> tuple[Rule, ...]:
    """Rules of a normalisation; arguments as for `weight_and_bias`."""
    return weight_and_bias(theirs, ours, SAME, "scale")


def linear(theirs: str, ours: str) -> tuple[Rule, ...]:
    """Rules of a linear layer; arguments as for `weight_and_bias`."""
    return weight_and_bias(theirs, ours, LINEAR)


def conv(theirs: str, ours: str) -> tuple[Rule, ...]:
    """Rules of a two-dimensional convolution; arguments as for `weight_and_bias`."""
    return weight_and_bias(theirs, ours, CONV)


def batch_norm(theirs: str, ours: str) -> tuple[Rule, ...]:
    """Rules of a batch norm with its running statistics; arguments as for `weight_and_bias`."""
    return (
        *norm(theirs, ours),
        Rule((f"{theirs}.running_mean",), (f"{ours}.mean",), SAME),
        Rule((f"{theirs}.running_var",), (f"{ours}.var",), SAME),
        Rule((f"{theirs}.num_batches_tracked",), (f"{ours}.num_batches",), COUNT),
    )


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


class Buffer(NamedTuple):
    """An array of a source that holds no weights, and follows from one that does.

    Attributes:
      ending: of its key.
      beside: ending in whose place that is, of the key of the array it follows from.
      make: makes it from the shape of that array; None where it is only read past, not written.
    """

    ending: str
    beside: str = ""
    make: Callable[[Shape], np.ndarray] | None = None


@dataclasses.dataclass(frozen=True)
class Naming:
    """All names of one source.

    Attributes:
      name: of the naming.
      rules: the table; templates may begin with ``{root}``.
      marker: ending of a key that only this naming has, once per model.
      roots: what ``{root}`` may stand for.
      buffers: what holds no weights.
      head: beginnings of our names that belong to the classes, which ``drop_head`` leaves out.
      closing: expression for beginnings of our names that ``drop_head`` leaves out where only one
        of file and model has them.
      classes: our name of an array with an entry for each class; empty where none is known.
      root: what ``{root}`` is in a file to be written.
      refusal: why the source has no such model; empty where it has.
    """

    name: str
    rules: tuple[Rule, ...]
    marker: str
    roots: tuple[str, ...] = ("",)
    buffers: tuple[Buffer, ...] = ()
    head: tuple[str, ...] = ("head.",)
    closing: str = r"norm\d*\."
    classes: str = "head.bias"
    root: str = ""
    refusal: str = ""

    def under(self, theirs: str, ours: str) -> Naming:
        """The same table for a part of a larger model.

        Args:
          theirs: prefix of the source's names, such as ``"backbone."``.
          ours: prefix of our names.
        """
        rules = tuple(
            Rule(
                tuple(f"{theirs}{template}" for template in rule.theirs),
                tuple(f"{ours}{template}" for template in rule.ours),
                rule.layout,
            )
            for rule in self.rules
        )
        return dataclasses.replace(
            self,
            rules=rules,
            marker=f"{theirs}{self.marker}",
            roots=("",),
            buffers=(),
            head=tuple(f"{ours}{start}" for start in self.head),
            classes="",
            closing=f"{re.escape(ours)}(?:{self.closing})",
        )

    def joined(
        self,
        *rules: Rule,
        marker: str | None = None,
        head: tuple[str, ...] | None = None,
        classes: str = "",
        buffers: tuple[Buffer, ...] = (),
    ) -> Naming:
        """The table with further rules, such as those of a detector's heads.

        Args:
          *rules: to be added.
          marker: ending of a key that tells the larger model from its part; None leaves that of the
            part.
          head: beginnings of our names that belong to the classes; None leaves them as they are.
          classes: our name of an array with an entry for each class.
          buffers: to be added.
        """
        return dataclasses.replace(
            self,
            rules=self.rules + rules,
            marker=self.marker if marker is None else marker,
            head=self.head if head is None else head,
            classes=classes or self.classes,
            buffers=self.buffers + buffers,
        )

    def of_ours(self) -> Naming:
        """The naming that calls everything as natjax does, in natjax's layouts."""
        marker = self.translate(self.marker.replace(ROOT, ""))
        return dataclasses.replace(
            self,
            name="natjax",
            rules=tuple(Rule(rule.ours, rule.ours, SAME) for rule in self.rules),
            marker=self.marker if marker is None else marker.ours[0],
            roots=("",),
            buffers=(),
            root="",
            refusal="",
        )

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

    def is_buffer(self, key: str) -> bool:
        """Whether a key of the source holds no weights."""
        return any(key.endswith(buffer.ending) for buffer in self.buffers)

    def is_head(self, name: str) -> bool:
        """Whether one of our names belongs to the classes."""
        return name.startswith(self.head)

    def is_closing(self, name: str) -> bool:
        """Whether one of our names belongs to the task, as the classes and norms before them."""
        return self.is_head(name) or re.match(self.closing, name) is not None


def _fill(rule: Rule, numbers: Numbers, root: str) -> Binding:
    theirs = (fill_template(template.replace(ROOT, root), numbers) for template in rule.theirs)
    ours = (fill_template(template, numbers) for template in rule.ours)
    return Binding(tuple(theirs), tuple(ours), rule.layout)


def by_name(tables: Sequence[Naming]) -> dict[str, Naming]:
    """Tables by the name of their naming, natjax's own first, which follows from the first table.

    Args:
      tables: of the names that a model's weights have elsewhere.
    """
    return {naming.name: naming for naming in (tables[0].of_ours(), *tables)}


def namings_of(model: nnx.Module) -> dict[str, Naming]:
    """The tables of names that a model's weights may have, by name.

    A module offers those of elsewhere by a method ``namings()``, which returns a sequence of
    `Naming`.

    Args:
      model: a model of natjax, or any module.

    Raises:
      WeightsError: the module offers none.
    """
    offered = getattr(model, "namings", None)
    if offered is None:
        raise WeightsError(
            f"a {type(model).__name__} has no names that weights could have: it must be a model of"
            " natjax, or have a method namings() (natjax.weights.names.namings_of)"
        )
    return by_name(offered())
