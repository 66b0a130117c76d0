"""Reader of the pickles in PyTorch files, which executes nothing.

A pickle is a program for a stack machine. This machine has the instructions that `torch.save` uses
and no others, and its instructions cannot import, call or set attributes: names are strings, and
the few that mean something are in `natjax.weights.torch_globals`. `pickle.Unpickler` could be held
to those names, but it takes memory for declared lengths and memo indices before it looks.
"""

import pickle
import pickletools
from collections.abc import Callable
from typing import Any

from natjax.weights.errors import show
from natjax.weights.source import Source
from natjax.weights.torch_globals import BUILDERS, KNOWN
from natjax.weights.torch_tensors import Skipped, Storages

# Bounds for what a small file may expand to; a checkpoint of a thousand tensors with averages and
# optimizer takes some 100,000 instructions.
MOST_INSTRUCTIONS = 500_000
MOST_ENTRIES = 1_000_000
MOST_TEXT = 2**26  # bytes
DEEPEST = 64
_LONGEST_NAME = 512
_LONGEST_INT = 255
_PLAIN = (str, int, float, bool, type(None))


def read_pickle(source: Source, storages: Storages, *, lenient: bool) -> Any:
    """Read one pickle.

    Args:
      source: The file, where the pickle begins; left where it ends.
      storages: Storages that the pickle names.
      lenient: Whether what is no plain value gives a `Skipped` instead of an error.

    Returns:
      Tensors as NumPy arrays, in dicts, lists and tuples, with strings and numbers.

    Raises:
      WeightsError: the pickle is damaged or names something else; it is named.
    """
    content = _Machine(source, storages, lenient).run()
    _measure(content, source, lenient, {}, 0)
    return content


class _Machine:
    """Stack machine; `run` once."""

    def __init__(self, source: Source, storages: Storages, lenient: bool):
        self.source = source
        self.storages = storages
        self.lenient = lenient
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []  # stacks below the open marks
        self.memo: dict[int, Any] = {}
        self.text_left = MOST_TEXT

    def run(self) -> Any:
        """Execute up to the end of the pickle."""
        if self.source.read(1) != pickle.PROTO:
            raise self.source.error("a pickle must begin with its protocol")
        self.protocol()
        for _ in range(MOST_INSTRUCTIONS):
            code = self.source.read(1)
            if code == pickle.STOP:
                return self.result()
            if code not in _INSTRUCTIONS:
                known = pickletools.code2op.get(code.decode("latin1"))
                name = known.name if known else repr(code)
                raise self.source.error(f"a pickle of weights must have no instruction {name}")
            _INSTRUCTIONS[code](self)
        raise self.source.error(f"a pickle must have at most {MOST_INSTRUCTIONS} instructions")

    def result(self) -> Any:
        """Return the one value that is left."""
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

    def push(self, value: Any) -> None:
        """Put a value on the stack."""
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
        self.outer.append(self.stack)
        self.stack = []

    def run_of_values(self) -> list[Any]:
        """Return the values since the last mark and take them off."""
        if not self.outer:
            raise self.source.error("a pickle must not end what it has not begun; it is damaged")
        values, self.stack = self.stack, self.outer.pop()
        return values

    def skip(self, name: str, what: str = "") -> Skipped:
        """Return a stand-in, or raise where there must be none."""
        if not self.lenient:
            raise self.source.error(
                "a file of weights must hold only tensors, dicts, lists, strings and numbers,"
                f" got {what or show(name)} (lenient=True leaves it out)"
            )
        return Skipped(name)

    def text(self, length: int) -> None:
        """Push a string; Python 2 has put bytes there too."""
        data = self.read_text(length)
        try:
            self.push(data.decode())
        except UnicodeDecodeError:
            self.push(self.skip("bytes", "bytes that are no text"))

    def binary(self, length: int) -> None:
        """Pass over bytes."""
        self.read_text(length)
        self.push(self.skip("bytes", "bytes"))

    def read_text(self, length: int) -> bytes:
        """Return bytes, of which there may be so many in all."""
        if length > self.text_left:
            raise self.source.error(f"a pickle must hold at most {MOST_TEXT} bytes of text")
        self.text_left -= max(length, 0)
        return self.source.read(length)

    def integer(self, length: int) -> None:
        """Push an integer of many bytes."""
        if not 0 <= length <= _LONGEST_INT:
            raise self.source.error(f"an integer must have 0 to {_LONGEST_INT} bytes, got {length}")
        self.push(int.from_bytes(self.source.read(length), "little", signed=True))

    def tuple_of(self, count: int) -> None:
        """Push a tuple of the topmost values."""
        values = [self.pop() for _ in range(count)]
        self.push(tuple(reversed(values)))

    def append(self, values: list[Any]) -> None:
        """Add to the list on top."""
        target = self.top()
        if isinstance(target, list):
            target.extend(values)
        elif not (self.lenient and isinstance(target, Skipped)):
            raise self.source.error(f"values must be added to a list, got {show(target)}")

    def set_items(self, values: list[Any]) -> None:
        """Add to the dict on top."""
        target = self.top()
        if len(values) % 2:
            raise self.source.error("entries of a dict must come in pairs; the file is damaged")
        if isinstance(target, dict):
            keys = (self.key(key) for key in values[::2])
            target.update(zip(keys, values[1::2], strict=True))
        elif not (self.lenient and isinstance(target, Skipped)):
            raise self.source.error(f"entries must be added to a dict, got {show(target)}")

    def key(self, value: Any) -> Any:
        """Return a key that is safe to hash: a file may choose integers that collide, and tuples
        that take for ever.
        """
        if isinstance(value, _PLAIN) and (type(value) is not int or abs(value) < 2**63):
            return value
        return self.skip(f"key of type {type(value).__name__}", f"a dict's key {show(value)}")

    def name(self, module: Any, name: Any) -> None:
        """Push a name as what it is: a string."""
        if not isinstance(module, str) or not isinstance(name, str):
            raise self.source.error("a name must be made of two strings; the file is damaged")
        full = f"{module}.{name}"
        self.push(Skipped(full) if full in KNOWN else self.skip(full))

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
            self.push(self.skip(function.name))
        else:
            self.push(builder(args, self.source.error))

    def set_state(self) -> None:
        """Drop attributes: a state dict carries the versions of its modules."""
        state, target = self.pop(), self.top()
        if not self.lenient and not (isinstance(target, dict) and isinstance(state, dict)):
            self.skip("state", f"attributes for {show(target)}")

    def memoize(self, index: int) -> None:
        """Remember the value on top."""
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
        identity = self.pop()
        found = self.storages.get(identity, self.lenient)
        self.push(found)


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
    pickle.TUPLE: lambda m: m.push(tuple(m.run_of_values())),
    pickle.EMPTY_LIST: lambda m: m.push([]),
    pickle.LIST: lambda m: m.push(m.run_of_values()),
    pickle.APPEND: lambda m: m.append([m.pop()]),
    pickle.APPENDS: lambda m: m.append(m.run_of_values()),
    pickle.EMPTY_DICT: lambda m: m.push({}),
    pickle.SETITEM: lambda m: m.set_items([m.pop(), m.pop()][::-1]),
    pickle.SETITEMS: lambda m: m.set_items(m.run_of_values()),
    pickle.EMPTY_SET: lambda m: m.push(m.skip("set", "a set")),
    pickle.ADDITEMS: lambda m: m.append(m.run_of_values()),
    pickle.FROZENSET: lambda m: (m.run_of_values(), m.push(m.skip("frozenset", "a set")))[1],
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
    pickle.BUILD: _Machine.set_state,
}


def _measure(
    value: Any, source: Source, lenient: bool, known: dict[int, tuple[int, int]], depth: int
) -> tuple[int, int]:
    """Refuse what would overrun whoever walks through it, and stand-ins where there must be none.

    The same list may stand in another twice, and that one in a third: a small file can describe a
    structure without end.

    Args:
      value: A part of the content.
      source: The file.
      lenient: Whether stand-ins may be there.
      known: Containers that were measured, by identity; they live as long as the content.
      depth: How many containers it is in.

    Returns:
      Entries in it, counting repeated ones each time, and its height.
    """
    if isinstance(value, Skipped) and not lenient:
        raise source.error(f"{value.name} must not stand alone, without a tensor")
    if not isinstance(value, dict | list | tuple):
        return 1, 0
    if id(value) not in known:
        if depth > DEEPEST:
            raise source.error(f"dicts and lists must be nested at most {DEEPEST} deep")
        parts = value.values() if isinstance(value, dict) else value
        inner = [_measure(part, source, lenient, known, depth + 1) for part in parts]
        entries = 1 + sum(count for count, _ in inner)
        height = 1 + max((height for _, height in inner), default=0)
        if entries > MOST_ENTRIES or height > DEEPEST:
            raise source.error(
                f"the content must have at most {MOST_ENTRIES} entries, nested {DEEPEST} deep"
            )
        known[id(value)] = entries, height
    return known[id(value)]
