"""Writer of files in PyTorch's formats, good and bad, since the tests have no PyTorch.

`dump` writes one pickle (protocol 2, as `torch.save` does) from plain values and the classes here,
which stand for instructions that plain values do not have.
"""

import io
import pickle
import struct
import zipfile
from dataclasses import dataclass
from typing import Any

import numpy as np

STORAGES = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "int16": "ShortStorage",
    "int8": "CharStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
    "complex128": "ComplexDoubleStorage",
    "complex64": "ComplexFloatStorage",
}


@dataclass
class Global:
    """A name, such as ``Global("torch", "FloatStorage")``."""

    module: str
    name: str


@dataclass
class Reduce:
    """A call of a name."""

    function: Any
    args: Any


@dataclass
class NewObject:
    """An instance of a class with attributes."""

    kind: Any
    state: Any


@dataclass
class State:
    """A value with attributes set on it."""

    value: Any
    state: Any


@dataclass
class Persistent:
    """An object outside the pickle."""

    identity: Any


@dataclass
class Raw:
    """Instructions as they are."""

    code: bytes


def dump(value):
    """A pickle of one value."""
    return pickle.PROTO + b"\2" + code(value) + pickle.STOP


def code(value):
    """The instructions that leave a value on the stack."""
    match value:
        case None:
            return pickle.NONE
        case bool():
            return pickle.NEWTRUE if value else pickle.NEWFALSE
        case int():
            return _integer(value)
        case float():
            return pickle.BINFLOAT + struct.pack(">d", value)
        case str():
            data = value.encode("utf-8", "surrogatepass")
            return pickle.BINUNICODE + struct.pack("<I", len(data)) + data
        case bytes():
            return pickle.BINBYTES + struct.pack("<I", len(value)) + value
        case tuple():
            return pickle.MARK + b"".join(map(code, value)) + pickle.TUPLE
        case list():
            return pickle.EMPTY_LIST + pickle.MARK + b"".join(map(code, value)) + pickle.APPENDS
        case dict():
            items = b"".join(code(part) for item in value.items() for part in item)
            return pickle.EMPTY_DICT + pickle.MARK + items + pickle.SETITEMS
        case Global(module, name):
            return pickle.GLOBAL + f"{module}\n{name}\n".encode()
        case Reduce(function, args):
            return code(function) + code(args) + pickle.REDUCE
        case NewObject(kind, state):
            return code(kind) + code(()) + pickle.NEWOBJ + code(state) + pickle.BUILD
        case State(inner, state):
            return code(inner) + code(state) + pickle.BUILD
        case Persistent(identity):
            return code(identity) + pickle.BINPERSID
        case Raw(instructions):
            return instructions
    raise TypeError(type(value))


def _integer(value):
    if 0 <= value < 256:
        return pickle.BININT1 + struct.pack("<B", value)
    if -(2**31) <= value < 2**31:
        return pickle.BININT + struct.pack("<i", value)
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    if len(data) < 256:
        return pickle.LONG1 + struct.pack("<B", len(data)) + data
    return pickle.LONG4 + struct.pack("<i", len(data)) + data


REBUILD = Global("torch._utils", "_rebuild_tensor_v2")
ORDERED_DICT = Global("collections", "OrderedDict")


def storage(key, count, kind="FloatStorage", *more):
    """The persistent id of a storage; `more` as the format without zip has it."""
    return Persistent(("storage", Global("torch", kind), key, "cpu", count, *more))


NO_GRADIENT_NO_HOOKS = (False, Reduce(ORDERED_DICT, ()))


def tensor(held, shape, strides, offset=0, rebuild=REBUILD, rest=NO_GRADIENT_NO_HOOKS):
    """A tensor on a storage."""
    return Reduce(rebuild, (held, offset, shape, strides, *rest))


def contiguous(shape):
    """Strides of a tensor whose elements follow each other."""
    return tuple(int(np.prod(shape[axis + 1 :], dtype=int)) for axis in range(len(shape)))


def tensors(arrays, *more):
    """``{name: array}`` as a value to dump, and the storages' bytes by key."""
    content, data = {}, {}
    for key, (name, array) in enumerate(arrays.items()):
        held = storage(str(key), array.size, STORAGES[array.dtype.name], *more)
        content[name] = tensor(held, array.shape, contiguous(array.shape))
        data[str(key)] = array.tobytes()
    return content, data


def zip_bytes(entries, **options):
    """A zip archive of ``[(name, bytes)]``, stored; `options` as for `zipfile.ZipFile`."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", **options) as archive:
        for name, data in entries:
            archive.writestr(zipfile.ZipInfo(name), data, options.get("compression"))
    return file.getvalue()


def zip_file(content, data=(), byteorder=b"little", folder="archive"):
    """A file as `torch.save` writes it: a value to dump, or its pickle, and storages by key."""
    pickled = content if isinstance(content, bytes) else dump(content)
    entries = [(f"{folder}/data.pkl", pickled), (f"{folder}/version", b"3\n")]
    if byteorder is not None:
        entries.append((f"{folder}/byteorder", byteorder))
    entries += [(f"{folder}/data/{key}", values) for key, values in dict(data).items()]
    return zip_bytes(entries)


MAGIC = 0x1950A86A20F9469CFC6C


def legacy_file(content, data=(), *, keys=None, widths=4, magic=MAGIC, version=1001):
    """A file as `torch.save` wrote it before PyTorch 1.6; `widths` are the elements' bytes."""
    data = dict(data)
    head = [magic, version, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}]
    pickles = [*map(dump, head), content if isinstance(content, bytes) else dump(content)]
    pickles.append(dump(list(data) if keys is None else keys))
    values = [struct.pack("<q", len(values) // widths) + values for values in data.values()]
    return b"".join(pickles + values)


def safetensors_file(header, data=b""):
    """A safetensors file with a header of any content, as JSON text or as bytes."""
    header = header if isinstance(header, bytes) else header.encode()
    return struct.pack("<Q", len(header)) + header + data
