"""Fuzzer of the readers of weights: pickles by a grammar, and damaged files.

    python tests/support/fuzz_weights.py programs FIRST COUNT
    python tests/support/fuzz_weights.py files FIRST COUNT

Number FIRST + i is the seed of the i-th case, so whatever is found comes again. Each case may give
a result or natjax's own error, within the memory that `natjax.weights.untrusted` promises; anything
else ends the run with the seed. What came of it is printed as JSON.
"""

import collections
import io
import json
import pathlib
import pickle
import random
import re
import struct
import sys
import time
import tracemalloc

import numpy as np
from safetensors.numpy import save
from torch_writer import (
    ORDERED_DICT,
    REBUILD,
    Global,
    NewObject,
    Persistent,
    Reduce,
    code,
    dump,
    legacy_file,
    storage,
    tensor,
    zip_file,
)

from natjax.weights import WeightsError
from natjax.weights.formats import read_file
from natjax.weights.torchfile.reader import read_torch
from natjax.weights.untrusted import BASE, FACTOR, Source

EVERY = 8  # cases whose memory is measured, which takes three times as long
DATA = {"0": bytes(16), "1": bytes(24), "2": b"\1\0\1\1", "3": bytes(4)}
NAMES = [
    *(("torch._utils", f"_rebuild_{kind}") for kind in ("tensor", "tensor_v2", "tensor_v3")),
    ("torch._utils", "_rebuild_parameter"),
    ("torch._utils", "_rebuild_parameter_with_state"),
    ("torch._utils", "_rebuild_qtensor"),
    ("collections", "OrderedDict"),
    ("torch", "Size"),
    *(("torch", f"{kind}Storage") for kind in ("Float", "Long", "Bool", "Byte", "QInt8")),
    ("torch.storage", "UntypedStorage"),
    *(("torch", kind) for kind in ("bool", "bfloat16", "float32", "uint16", "float8_e4m3fn")),
    ("argparse", "Namespace"),
    ("posix", "system"),
]
NUMBERS = [0, 1, 2, 3, 4, 5, 16, 255, 256, -1, 2**31 - 1, 2**31, 2**62, 2**63, 2**64, -(2**70)]
TEXTS = ["", "0", "1", "2", "3", "storage", "cpu", "a", "state_dict", "größe", "\x1b[2J", "a" * 300]


class Grammar:
    """Programs that are right for the most part, and wrong in a few places."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.stored = [0]  # memo indices that may be recalled

    def program(self):
        """A pickle."""
        pick = self.random
        protocol = bytes([pick.choice([2, 2, 2, 3, 4, 5]) if pick.random() < 0.98 else 9])
        body = b"".join(self.step() for _ in range(pick.randrange(1, 12)))
        if pick.random() < 0.02:
            body *= pick.randrange(2, 400)
        whole = pickle.MARK + body + pickle.TUPLE if pick.random() < 0.8 else body
        return pickle.PROTO + protocol + whole + (pickle.STOP if pick.random() < 0.97 else b"")

    def step(self):
        """A value, or an instruction that works on what is there."""
        return self.value(0) if self.random.random() < 0.93 else self.instruction()

    def value(self, depth):
        """Instructions that leave a value on the stack."""
        kinds = [self.atom, self.name, self.recall]
        if depth < 4:
            kinds += [self.container] * 2 + [self.storage, self.tensor, self.tensor, self.call]
        kind = self.random.choice(kinds)
        made = kind() if kind in (self.atom, self.name, self.recall) else kind(depth + 1)
        return made + self.memoize() if self.random.random() < 0.3 else made

    def atom(self):
        pick = self.random
        number = pick.choice(NUMBERS)
        return pick.choice(
            [
                lambda: code(number),
                lambda: code(number),
                lambda: code(pick.choice(TEXTS)),
                lambda: code(pick.choice([None, True, False, 0.5, float("nan"), b"\0\xff", b""])),
                lambda: pickle.SHORT_BINUNICODE + b"\3abc",
                lambda: pickle.SHORT_BINSTRING + b"\2\xff\xfe",
                lambda: pickle.LONG1 + bytes([pick.randrange(4)]) + b"\1\1\1"[: pick.randrange(4)],
                lambda: pick.choice([b")", b"]", b"}", pickle.EMPTY_SET]),
            ]
        )()

    def name(self):
        module, name = self.random.choice(NAMES)
        if self.random.random() < 0.2:
            return code(module) + code(name) + pickle.STACK_GLOBAL
        return code(Global(module, name))

    def memoize(self):
        index = self.random.randrange(4)
        if self.random.random() < 0.2:
            return self.random.choice([pickle.MEMOIZE, pickle.LONG_BINPUT + b"\xff\xff\xff\x7f"])
        self.stored.append(index)
        long = pickle.LONG_BINPUT + struct.pack("<I", index)
        return self.random.choice([pickle.BINPUT + bytes([index]), long])

    def recall(self):
        if len(self.stored) == 1 and self.random.random() < 0.98:
            return self.atom()
        index = self.random.choice(self.stored[1:] or self.stored)
        long = pickle.LONG_BINGET + struct.pack("<I", index)
        return self.random.choice([pickle.BINGET + bytes([index]), long])

    def values(self, depth, most=4):
        return [self.value(depth) for _ in range(self.random.randrange(most + 1))]

    def container(self, depth):
        values = self.values(depth)
        joined = b"".join(values)
        pairs = b"".join(self.key() + value for value in values)
        return self.random.choice(
            [
                pickle.MARK + joined + pickle.TUPLE,
                pickle.MARK + joined + pickle.LIST,
                pickle.EMPTY_LIST + pickle.MARK + joined + pickle.APPENDS,
                pickle.EMPTY_LIST + self.value(depth) + pickle.APPEND,
                pickle.EMPTY_DICT + pickle.MARK + pairs + pickle.SETITEMS,
                pickle.EMPTY_DICT + self.key() + self.value(depth) + pickle.SETITEM,
                pickle.EMPTY_SET + pickle.MARK + joined + pickle.ADDITEMS,
                self.value(depth) + self.value(depth) + pickle.TUPLE2,
                pickle.MARK + joined + pickle.FROZENSET,
            ]
        )

    def key(self):
        return code(self.random.choice(TEXTS)) if self.random.random() < 0.95 else self.value(4)

    def arguments(self, depth, right):
        """A tuple of what is right, but for one place now and then."""
        parts = list(right)
        if parts and self.random.random() < 0.1:
            place = self.random.randrange(len(parts))
            match self.random.randrange(3):
                case 0:
                    parts[place] = self.value(depth)
                case 1:
                    del parts[place]
                case 2:
                    parts.insert(place, self.value(depth))
        return pickle.MARK + b"".join(parts) + pickle.TUPLE

    def storage(self, depth):
        pick = self.random
        key, kind = pick.choice(
            [("0", "FloatStorage"), ("1", "LongStorage"), ("2", "BoolStorage"), ("3", "Untyped")]
        )
        is_untyped = kind == "Untyped"
        name = Global("torch.storage", "UntypedStorage") if is_untyped else Global("torch", kind)
        count = {"FloatStorage": 4, "LongStorage": 3}.get(kind, 4)
        count = count if pick.random() < 0.97 else pick.choice(NUMBERS)
        right = [code("storage"), code(name), code(key), code("cpu"), code(count)]
        if pick.random() < 0.05:
            right.append(code(pick.choice([None, None, ("v", 0, 2), ("v", 1, 2), ("v", -1, 9), 3])))
        return self.arguments(depth, right) + pickle.BINPERSID

    def tensor(self, depth):
        pick = self.random
        name = pick.choice(NAMES[:3])
        shape = tuple(
            pick.choice([0, 1, 1, 1, 2, 2, 2] if pick.random() < 0.95 else [3, 2**33])
            for _ in range(pick.randrange(4))
        )
        strides = tuple(
            pick.choice([0, 1, 1, 1] if pick.random() < 0.97 else [2, 2**62]) for _ in shape
        )
        right = [
            self.storage(depth),
            code(pick.choice([0, 0, 0, 1] if pick.random() < 0.97 else [2**63])),
            code(shape),
        ]
        right += [code(strides), code(False), code(Reduce(ORDERED_DICT, ()))]
        if name[1].endswith("v3"):
            right.append(code(Global("torch", pick.choice(["bool", "bfloat16", "float32"]))))
        right += [code(pick.choice([{}, None, {"neg": True}]))] if pick.random() < 0.1 else []
        return code(Global(*name)) + self.arguments(depth, right) + pickle.REDUCE

    def call(self, depth):
        pick = self.random
        right = self.values(depth)
        if pick.random() < 0.5:  # pairs, as Python 2 wrote them
            pairs = b"".join(pickle.MARK + self.key() + value + pickle.TUPLE for value in right)
            right = [pickle.EMPTY_LIST + pickle.MARK + pairs + pickle.APPENDS]
        unknown = code(Global("argparse", "Namespace"))
        name = pick.choice([code(ORDERED_DICT), code(ORDERED_DICT), unknown, self.name()])
        made = name + self.arguments(depth, right)
        made += pick.choice([pickle.REDUCE, pickle.REDUCE, pickle.NEWOBJ])
        return made + self.value(depth) + pickle.BUILD if pick.random() < 0.2 else made

    def instruction(self):
        pick = self.random
        known = b"\x95.(N)]}esbuatR\x81\x85\x86\x87Q\x94\x90\x91\x8f"
        if pick.random() < 0.05:
            return bytes([pick.randrange(256)])
        found = bytes([pick.choice(known)])
        return found + bytes(8) if found == pickle.FRAME else found


CONTENT = {
    "state_dict": Reduce(ORDERED_DICT, ([["a", tensor(storage("0", 4), (2, 2), (2, 1))]],)),
    "b": [tensor(storage("1", 3, "LongStorage"), (3,), (1,)), 1.5, "text", None],
    "args": NewObject(Global("argparse", "Namespace"), {"lr": 0.1}),
    "odd": Reduce(REBUILD, (Persistent(("storage", "x")), 0, (), ())),
}
PICKLED = dump({key: value for key, value in CONTENT.items() if key != "odd"})
GOOD = [
    zip_file(PICKLED, {"0": bytes(16), "1": bytes(24)}),
    legacy_file(PICKLED, {"0": bytes(16), "1": bytes(24)}),
    save({"a": np.arange(6, dtype=np.float32), "b": np.ones(3, bool)}, {"natjax.model": "x"}),
]


def damaged(seed):
    """A good file with some bytes changed, put in, taken out or repeated."""
    pick = random.Random(seed)
    kind = pick.randrange(len(GOOD) + 1)
    if kind == len(GOOD):  # whole but for its pickle
        return zip_file(_edited(PICKLED, pick), {"0": bytes(16), "1": bytes(24)})
    return _edited(GOOD[kind], pick)


def _edited(data, pick):
    for _ in range(pick.choice([1, 1, 1, 2, 3, 6])):
        place = pick.randrange(len(data) + 1)
        value = pick.choice([pick.randbytes(pick.randrange(1, 5)), b"\xff" * 4, b"\xff" * 8])
        match pick.randrange(5):
            case 0 | 1:
                data = data[:place] + value + data[place + len(value) :]
            case 2:
                data = data[:place] + value + data[place:]
            case 3:
                data = data[:place] + data[place + len(value) :]
            case 4:
                data = data[: place + pick.randrange(60)] + data[place:]
    return data


def read_program(seed, _):
    """Read a program in a good archive; that is most of the time, so none of it is a file's."""
    data = zip_file(Grammar(seed).program(), DATA)
    return data, lambda: read_torch(Source(io.BytesIO(data), pathlib.Path("fuzzed"), len(data)))


def read_damaged(seed, path):
    """Read a damaged file as users do."""
    data = damaged(seed)
    path.write_bytes(data)
    return data, lambda: read_file(path).content


def check(data, read):
    """What became of a case."""
    try:
        content = read()
    except WeightsError as error:
        return re.sub(r"[0-9]+|'.*'|\(.*\)", "", str(error).partition(": ")[2])[:60]
    for array in arrays_in(content, {}):
        assert array.nbytes <= len(data)
        array.tobytes()  # looks at every element
    return "read"


def measure(data, read):
    """What became of a case, and the most memory that it took."""
    tracemalloc.start()
    try:
        outcome = check(data, read)
        return outcome, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def arrays_in(content, seen):
    """All arrays, each container once."""
    if isinstance(content, np.ndarray):
        yield content
    if isinstance(content, dict | list | tuple) and id(content) not in seen:
        seen[id(content)] = content
        for part in content.values() if isinstance(content, dict) else content:
            yield from arrays_in(part, seen)


def main(kind, first, count, path):
    """Run all cases."""
    case = {"programs": read_program, "files": read_damaged}[kind]
    outcomes, worst, began = collections.Counter(), 0, time.process_time()
    for seed in range(first, first + count):
        data, read = case(seed, path)
        try:
            if seed % EVERY:
                outcome = check(data, read)
            else:
                outcome, peak = measure(data, read)
                assert peak <= BASE + FACTOR * len(data), peak
                worst = max(worst, peak / (BASE + FACTOR * len(data)))
        except Exception as error:
            sys.exit(f"seed {seed}: {type(error).__name__}: {error}")
        outcomes[outcome] += 1
    results = {
        "cases": count,
        "read": outcomes["read"],
        "kinds of refusal": len(outcomes) - 1,
        "most memory of what is allowed": round(worst, 4),
        "seconds": round(time.process_time() - began, 1),
        "most frequent": outcomes.most_common(12),
    }
    sys.stdout.write(json.dumps(results) + "\n")


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), pathlib.Path(folder) / "fuzzed")
