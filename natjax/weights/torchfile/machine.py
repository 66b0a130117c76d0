"""Reader of the pickles in PyTorch files, which executes nothing.

A pickle is a program for a stack machine. This machine has the instructions that `torch.save` uses
and no others, and its instructions cannot import, call or set attributes: names are strings, and
the few that mean something are in `natjax.weights.torchfile.builders`. `pickle.Unpickler` could be
held to those names, but it takes memory for declared lengths and memo indices before it looks.

Every value that is made is charged to the budget of the file (`natjax.weights.untrusted`).
"""

import pickle
import pickletools
from collections.abc import Callable
from typing import Any

from natjax.weights.torchfile.builders import BUILDERS
from natjax.weights.torchfile.tensors import Skipped, Storages
from natjax.weights.untrusted import ENTRY, VALUE, Source, WeightsError, show

_MAX_DEPTH = 64  # whoever walks through the content may do so by recursion
_LONGEST_NAME = 512
_LONGEST_INT = 255
_CONTAINER = 2 * VALUE
_SLOT = 8 * ENTRY  # of a dict, counting the copy when it grows
_OBJECT = 8 * VALUE  # a name, an array, and whatever else a builder makes
_PLAIN = (str, int, float, bool, type(None))


def read_pickle(source: Source, storages: Storages) -> Any:
    """Read one pickle.

    Args:
      source: The file, where the pickle begins; left where it ends.
      storages: Storages that the pickle names.

    Returns:
      Tensors as NumPy arrays, in dicts, lists and tuples, with strings and numbers; a `Skipped`
      where there is anything else.

    Raises:
      WeightsError: the pickle is damaged, or asks for more than its share.
    """
    content = _Machine(source, storages).run()
    entries, _ = _measure(content, source, {}, 0)
    # Whoever walks through the content meets a shared list as often as it is named.
    source.charge(ENTRY * entries)
    return content


class _Machine:
    """Stack machine; `run` once."""

    def __init__(self, source: Source, storages: Storages):
        self.source = source
        self.storages = storages
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []  # stacks below the open marks
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        """Execute up to the end of the pickle."""
        if self.source.read(1) != pickle.PROTO:
            raise self.source.error("a pickle must begin with its protocol")
        self.protocol()
        while (code := self.source.read(1)) != pickle.STOP:
            if code not in _INSTRUCTIONS:
                known = pickletools.code2op.get(code.decode("latin1"))
                name = known.name if known else repr(code)
                raise self.source.error(f"a pickle of weights must have no instruction {name}")
            _INSTRUCTIONS[code](self)
        if self.outer or len(self.stack) != 1:
            raise self.source.error("a pickle must end with one value on its stack; it is damaged")
        return self.stack[0]

    def protocol(self) -> None:
        """Check the protocol's number."""
        number = self.number("<B")
        if not 2 <= number <= 5:
            raise self.source.error(f"the pickle protocol must be 2 to 5, got {number}")

    def number(self, layout: str) -> Any:
        """Return the instruction's argument."""
        return self.source.unpack(layout)[0]

    def push(self, value: Any, cost: int = VALUE) -> None:
        """Put a value on the stack, which took at most `cost` bytes to make."""
        self.source.charge(cost)
        self.stack.append(value)

    def pop(self) -> Any:
        """Take the topmost value off the stack."""
        if not self.stack:
            raise self.source.error("a pickle must not take from an empty stack; it is damaged")
        return self.stack.pop()

    def top(self) -> Any:
        """Return the topmost value."""
        if not self.stack:
            raise self.source.error("a pickle must not look at an empty stack; it is damaged")
        return self.stack[-1]

    def mark(self) -> None:
        """Begin a run of values."""
        self.source.charge(_CONTAINER)
        self.outer.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        """Return the values since the last mark and take them off."""
        if not self.outer:
            raise self.source.error("a pickle must not end what it has not begun; it is damaged")
        values, self.stack = self.stack, self.outer.pop()
        return values

    def text(self, length: int) -> None:
        """Push a string; Python 2 has put bytes there too."""
        data = self.source.read(length)
        self.source.charge(length if data.isascii() else 4 * length)
        try:
            self.push(data.decode())
        except UnicodeDecodeError:
            self.push(Skipped("bytes"))

    def binary(self, length: int) -> None:
        """Pass over bytes."""
        self.source.read(length)
        self.push(Skipped("bytes"))

    def integer(self, length: int) -> None:
        """Push an integer of many bytes."""
        if not 0 <= length <= _LONGEST_INT:
            raise self.source.error(f"an integer must have 0 to {_LONGEST_INT} bytes, got {length}")
        value = int.from_bytes(self.source.read(length), "little", signed=True)
        self.push(value, VALUE + 2 * length)

    def new_tuple(self, values: list[Any]) -> None:
        """Push a tuple."""
        self.push(tuple(values), _CONTAINER + ENTRY * len(values))

    def tuple_of(self, count: int) -> None:
        """Push a tuple of the topmost values."""
        self.new_tuple([self.pop() for _ in range(count)][::-1])

    def append(self, values: list[Any]) -> None:
        """Add to the list on top."""
        target = self.top()
        self.source.charge(ENTRY * len(values))
        if isinstance(target, list):
            target.extend(values)
        elif not isinstance(target, Skipped):
            raise self.source.error(f"values must be added to a list, got {show(target)}")

    def set_items(self, values: list[Any]) -> None:
        """Add to the dict on top."""
        target = self.top()
        self.source.charge(_SLOT * len(values))
        if len(values) % 2:
            raise self.source.error("entries of a dict must come in pairs; the file is damaged")
        if isinstance(target, dict):
            target.update(zip(map(_key, values[::2]), values[1::2], strict=True))
        elif not isinstance(target, Skipped):
            raise self.source.error(f"entries must be added to a dict, got {show(target)}")

    def name(self, module: Any, name: Any) -> None:
        """Push a name as what it is: a string."""
        if not isinstance(module, str) or not isinstance(name, str):
            raise self.source.error("a name must be made of two strings; the file is damaged")
        self.push(Skipped(f"{module}.{name}"), _OBJECT + 4 * (len(module) + len(name)))

    def name_from_lines(self) -> None:
        """Push a name written as two lines."""
        try:
            module, name = (self.source.line(_LONGEST_NAME).decode() for _ in range(2))
        except UnicodeDecodeError as error:
            raise self.source.error("a name must be text; the file is damaged") from error
        self.name(module, name)

    def name_from_stack(self) -> None:
        """Push a name whose parts are on the stack."""
        name = self.pop()
        self.name(self.pop(), name)

    def build(self) -> None:
        """Replace a name and its arguments by what they make."""
        args, function = self.pop(), self.pop()
        if not isinstance(function, Skipped) or not isinstance(args, tuple | Skipped):
            raise self.source.error("only a name with a tuple can be built; the file is damaged")
        builder = BUILDERS.get(function.name)
        if builder is None or isinstance(args, Skipped):
            self.push(Skipped(function.name))
            return
        listed = sum(len(arg) for arg in args if isinstance(arg, list))  # become entries of a dict
        others = sum(len(arg) for arg in args if isinstance(arg, tuple))
        self.source.charge(_OBJECT + _SLOT * listed + ENTRY * (others + len(args)))
        self.push(builder(args, self.storages, self.source))

    def drop_state(self) -> None:
        """Drop attributes: a state dict carries the versions of its modules."""
        self.pop()
        self.top()

    def memoize(self, index: int) -> None:
        """Remember the value on top."""
        self.source.charge(_SLOT)
        self.memo[index] = self.top()

    def recall(self, index: int) -> None:
        """Push a value again."""
        if index not in self.memo:
            raise self.source.error(f"a pickle must store before it recalls, got index {index}")
        self.push(self.memo[index])

    def frame(self) -> None:
        """Pass over the length of a frame, which only helps readers that buffer."""
        self.source.unpack("<Q")

    def storage(self) -> None:
        """Replace a persistent id by the storage it names."""
        self.push(self.storages.get(self.pop()), _OBJECT)


def _key(value: Any) -> Any:
    """A key that is safe to hash.

    A file may choose integers that collide, and tuples that take for ever.
    """
    if isinstance(value, _PLAIN) and (type(value) is not int or abs(value) < 2**63):
        return value
    return Skipped(f"key of type {type(value).__name__}")


_INSTRUCTIONS: dict[bytes, Callable[[_Machine], None]] = {
    pickle.FRAME: _Machine.frame,
    pickle.MARK: _Machine.mark,
    pickle.NONE: lambda m: m.push(None),
    pickle.NEWTRUE: lambda m: m.push(True),
    pickle.NEWFALSE: lambda m: m.push(False),
    pickle.BININT: lambda m: m.push(m.number("<i")),
    pickle.BININT1: lambda m: m.push(m.number("<B")),
    pickle.BININT2: lambda m: m.push(m.number("<H")),
    pickle.LONG1: lambda m: m.integer(m.number("<B")),
    pickle.LONG4: lambda m: m.integer(m.number("<i")),
    pickle.BINFLOAT: lambda m: m.push(m.number(">d")),
    pickle.BINUNICODE: lambda m: m.text(m.number("<I")),
    pickle.SHORT_BINUNICODE: lambda m: m.text(m.number("<B")),
    pickle.BINUNICODE8: lambda m: m.text(m.number("<Q")),
    pickle.BINSTRING: lambda m: m.text(m.number("<i")),
    pickle.SHORT_BINSTRING: lambda m: m.text(m.number("<B")),
    pickle.BINBYTES: lambda m: m.binary(m.number("<I")),
    pickle.SHORT_BINBYTES: lambda m: m.binary(m.number("<B")),
    pickle.BINBYTES8: lambda m: m.binary(m.number("<Q")),
    pickle.BYTEARRAY8: lambda m: m.binary(m.number("<Q")),
    pickle.EMPTY_TUPLE: lambda m: m.push(()),
    pickle.TUPLE1: lambda m: m.tuple_of(1),
    pickle.TUPLE2: lambda m: m.tuple_of(2),
    pickle.TUPLE3: lambda m: m.tuple_of(3),
    pickle.TUPLE: lambda m: m.new_tuple(m.since_mark()),
    pickle.EMPTY_LIST: lambda m: m.push([], _CONTAINER),
    pickle.LIST: lambda m: m.push(m.since_mark()),
    pickle.APPEND: lambda m: m.append([m.pop()]),
    pickle.APPENDS: lambda m: m.append(m.since_mark()),
    pickle.EMPTY_DICT: lambda m: m.push({}, _CONTAINER),
    pickle.SETITEM: lambda m: m.set_items([m.pop(), m.pop()][::-1]),
    pickle.SETITEMS: lambda m: m.set_items(m.since_mark()),
    pickle.EMPTY_SET: lambda m: m.push(Skipped("set")),
    pickle.ADDITEMS: lambda m: m.append(m.since_mark()),
    pickle.FROZENSET: lambda m: (m.since_mark(), m.push(Skipped("frozenset")))[1],
    pickle.BINPUT: lambda m: m.memoize(m.number("<B")),
    pickle.LONG_BINPUT: lambda m: m.memoize(m.number("<I")),
    pickle.MEMOIZE: lambda m: m.memoize(len(m.memo)),
    pickle.BINGET: lambda m: m.recall(m.number("<B")),
    pickle.LONG_BINGET: lambda m: m.recall(m.number("<I")),
    pickle.GLOBAL: _Machine.name_from_lines,
    pickle.STACK_GLOBAL: _Machine.name_from_stack,
    pickle.BINPERSID: _Machine.storage,
    pickle.REDUCE: _Machine.build,
    pickle.NEWOBJ: _Machine.build,
    pickle.BUILD: _Machine.drop_state,
}


def _measure(
    value: Any, source: Source, known: dict[int, tuple[int, int]], depth: int
) -> tuple[int, int]:
    """Measure the content, and refuse what is nested too deep.

    The same list may stand in another twice, and that one in a third: a small file can describe a
    structure without end.

    Args:
      value: A part of the content.
      source: The file.
      known: Containers that were measured, by identity; they live as long as the content.
      depth: How many containers it is in.

    Returns:
      Entries in it, counting repeated ones each time, and its height.
    """
    if not isinstance(value, dict | list | tuple):
        return 1, 0
    if id(value) not in known:
        parts = value.values() if isinstance(value, dict) else value
        source.charge(_OBJECT + ENTRY * len(value))
        if depth > _MAX_DEPTH:
            raise _too_deep(source)
        inner = [_measure(part, source, known, depth + 1) for part in parts]
        height = 1 + max((height for _, height in inner), default=0)
        if height > _MAX_DEPTH:  # where it was met first, it may have been less deep
            raise _too_deep(source)
        known[id(value)] = 1 + sum(count for count, _ in inner), height
    return known[id(value)]


def _too_deep(source: Source) -> WeightsError:
    return source.error(f"dicts and lists must be nested at most {_MAX_DEPTH} deep")
