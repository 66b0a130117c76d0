"""PyTorch's files: what is in them comes out, and nothing else happens, whatever is in them."""

import contextlib
import json
import os
import pathlib
import pickle
import struct
import subprocess
import sys
import time
import tracemalloc
import zipfile

import goldens
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_writer import (
    MAGIC,
    ORDERED_DICT,
    REBUILD,
    STORAGES,
    Global,
    NewObject,
    Persistent,
    Raw,
    Reduce,
    State,
    code,
    dump,
    legacy_file,
    storage,
    tensor,
    tensors,
    zip_bytes,
    zip_file,
)

from natjax.weights.formats import read_file
from natjax.weights.torchfile.tensors import Skipped
from natjax.weights.untrusted import WeightsError

MIB = 2**20


def read_torch(path):
    return read_file(path).content


@pytest.fixture
def read(tmp_path):
    """Read a file of these bytes."""

    def read_bytes(data):
        path = tmp_path / "weights.pth"
        path.write_bytes(data)
        return read_torch(path)

    return read_bytes


@pytest.fixture
def refused(read):
    """Check that a file of these bytes is refused."""

    def refuse(data, message):
        with pytest.raises(WeightsError, match=message) as caught:
            read(data)
        assert "weights.pth: " in str(caught.value)

    return refuse


# Goldens

FLOAT32 = ("nat_b_bare.pth", "nat_b_legacy.pth", "nat_b_strided.pth")
HALVES = {"nat_b_half.pth": np.float16, "nat_b_bf16.pth": ml_dtypes.bfloat16}


def golden(name):
    """Path of a golden file; not all are committed."""
    found = goldens.pth_files(name)
    if not found:
        pytest.skip(f"{name} is in the full set of goldens only")
    return found[0]


def assert_equal_bits(actual, expected):
    assert list(actual) == list(expected)
    for name, array in expected.items():
        assert actual[name].dtype == array.dtype, name
        assert actual[name].shape == array.shape, name
        assert actual[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize("name", FLOAT32)
def test_golden_files_hold_the_golden_weights(name):
    weights = read_torch(golden(name))
    assert len(weights) == 58
    expected = goldens.under("nat", "b/param")
    assert_equal_bits(weights, {name: expected[name] for name in weights})


@pytest.mark.parametrize("name", HALVES)
def test_golden_half_precision(name):
    dtype = HALVES[name]
    expected = goldens.under("nat", "b/param")
    weights = read_torch(golden(name))
    assert_equal_bits(weights, {name: expected[name].astype(dtype) for name in weights})


def test_golden_training_checkpoint():
    path = golden("nat_b_timm.pth.tar")
    content = read_torch(path)
    assert content["args"] == Skipped("argparse.Namespace")
    assert content["optimizer"] == {"state": {}, "param_groups": [{"lr": 0.001}]}
    assert (content["epoch"], content["metric"], content["version"]) == (3, 1.0, 2)
    expected = goldens.under("nat", "b/param")
    for name, array in expected.items():
        np.testing.assert_array_equal(content["state_dict"][f"module.{name}"], array)
        np.testing.assert_array_equal(content["state_dict_ema"][name], array * np.float32(0.5))


def test_golden_malicious_file_does_nothing():
    path = golden("malicious.pth")
    assert read_torch(path)["x"] == Skipped("posix.system")
    assert not pathlib.Path("/tmp/natjax_pwned").exists()


def test_golden_truncated_file():
    path = golden("truncated.pth")
    with pytest.raises(WeightsError, match=r"truncated.pth: .*cut off; download it again"):
        read_torch(path)


# Values and layouts


def sample(dtype):
    values = np.arange(24) % 5
    return (values * (1 - 0.5j) if np.dtype(dtype).kind == "c" else values).astype(dtype)


@pytest.mark.parametrize("dtype", STORAGES)
def test_every_dtype(read, dtype):
    array = sample(dtype).reshape(2, 3, 4)
    content, data = tensors({"a": array})
    assert_equal_bits(read(zip_file(content, data)), {"a": array})
    content, data = tensors({"a": array}, None)
    assert_equal_bits(read(legacy_file(content, data, widths=array.itemsize)), {"a": array})


@pytest.mark.parametrize("dtype", STORAGES)
def test_big_endian_values(read, dtype):
    array = sample(dtype)
    content, _ = tensors({"a": array})
    width = array.itemsize // (2 if array.dtype.kind == "c" else 1)
    swapped = array.view(f"u{width}").byteswap().tobytes()
    assert_equal_bits(read(zip_file(content, {"0": swapped}, byteorder=b"big")), {"a": array})


def test_a_file_without_byte_order_is_little_endian(read):
    content, data = tensors({"a": np.arange(3.0)})
    np.testing.assert_array_equal(read(zip_file(content, data, byteorder=None))["a"], [0, 1, 2])


@pytest.mark.parametrize("order", [b"middle", b"", b"little" * 9, b"\xff"])
def test_wrong_byte_order(refused, order):
    content, data = tensors({"a": np.arange(3.0)})
    refused(zip_file(content, data, byteorder=order), "byteorder must be little or big")


NEW_DTYPES = {
    "uint16": np.uint16,
    "uint32": np.uint32,
    "uint64": np.uint64,
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8_e5m2": ml_dtypes.float8_e5m2,
    "float8_e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "float8_e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
}


def of_bytes(dtype, count, offset=0):
    """A tensor of a newer dtype, which has no storage class of its own."""
    held = Persistent(("storage", Global("torch.storage", "UntypedStorage"), "0", "cpu", count))
    rest = (False, Reduce(ORDERED_DICT, ()), Global("torch", dtype))
    return tensor(held, (2,), (1,), offset, Global("torch._utils", "_rebuild_tensor_v3"), rest)


@pytest.mark.parametrize("dtype", NEW_DTYPES)
def test_dtypes_without_a_storage_class(read, refused, dtype):
    array = np.arange(4).astype(NEW_DTYPES[dtype])
    data = {"0": array.tobytes()}
    result = read(zip_file(of_bytes(dtype, array.nbytes, 2), data))
    assert_equal_bits({"a": result}, {"a": array[2:]})
    refused(zip_file(of_bytes(dtype, array.nbytes, 3), data), "must lie within")
    big = zip_file(of_bytes(dtype, array.nbytes), data, byteorder=b"big")
    refused(big, "must be in little-endian order")


def test_views_of_one_storage(read):
    values = np.arange(24, dtype=np.float32)
    held = storage("0", 24)
    content = {
        "half": tensor(held, (3, 4), (4, 1), 12),
        "transposed": tensor(held, (4, 6), (1, 4)),
        "every other": tensor(held, (12,), (2,), 1),
        "repeated": tensor(held, (2, 6), (0, 2)),
        "scalar": tensor(held, (), (), 23),
        "empty": tensor(held, (3, 0), (7, 7), 24),
        "ones": tensor(held, (1, 2, 1), (2**62, 1, 2**62)),
    }
    result = read(zip_file(content, {"0": values.tobytes()}))
    grid = values.reshape(6, 4)
    expected = {
        "half": grid[3:],
        "transposed": grid.T,
        "every other": values[1::2],
        "repeated": np.broadcast_to(values[:12:2], (2, 6)),
        "scalar": np.float32(23),
        "empty": np.zeros((3, 0), np.float32),
        "ones": values[:2].reshape(1, 2, 1),
    }
    assert_equal_bits(result, expected)
    with pytest.raises(ValueError, match="read-only"):
        result["half"][...] = 0
    assert np.shares_memory(result["half"], result["transposed"])


def test_legacy_views_of_a_storage(read, refused):
    values = np.arange(10, dtype=np.float32)

    def file(*view):
        return legacy_file(tensor(storage("0", 10, "FloatStorage", view), (3,), (1,)), data)

    data = {"0": values.tobytes()}
    np.testing.assert_array_equal(read(file("v", 2, 4)), values[2:5])
    refused(file("v", 2, 2), "must lie within its storage of 2 elements")
    refused(file("v", 8, 3), "a view must end within its storage of 40 bytes, got 44")
    refused(file("v", -1, 3), r"a view must be \(key, start, size\)")
    refused(file(1), r"a view must be \(key, start, size\)")


def test_parameters_and_older_forms(read):
    values = np.arange(4, dtype=np.float32)
    inner = tensor(storage("0", 4), (2, 2), (2, 1))
    hooks = Reduce(ORDERED_DICT, ())
    old = Global("torch._utils", "_rebuild_tensor")
    parameter = Global("torch._utils", "_rebuild_parameter")
    with_state = Global("torch._utils", "_rebuild_parameter_with_state")
    content = {
        "parameter": Reduce(parameter, (inner, True, hooks)),
        "with state": Reduce(with_state, (inner, True, hooks, {"_is_hf_initialized": True})),
        "first form": tensor(storage("0", 4), (2, 2), (2, 1), rebuild=old, rest=()),
        "with metadata": tensor(storage("0", 4), (2, 2), (2, 1), rest=(False, hooks, {})),
        "size": tensor(storage("0", 4), Reduce(Global("torch", "Size"), ((2, 2),)), (2, 1)),
    }
    result = read(zip_file(content, {"0": values.tobytes()}))
    assert_equal_bits(result, dict.fromkeys(content, values.reshape(2, 2)))


def test_plain_values_and_containers(read):
    content = {
        "numbers": [0, 255, 256, -1, 2**40, -(2**70), 0.5, float("inf"), True, False, None],
        "text": "größe \U0001f642",
        3: (("nested",), {}, [], ()),
        None: {True: {0.5: "keys"}},
    }
    assert read(zip_file(content)) == content
    assert read(legacy_file(content)) == content


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_of_python(read, protocol):
    shared = ["twice"]
    content = {"a": [1, 2**40, 1.5], "long": "x" * 300, "b": (1, 2, 3, 4), "c": [shared, shared]}
    result = read(zip_file(pickle.dumps(content, protocol)))
    assert result == content
    assert result["c"][0] is result["c"][1]


def test_state_dict_with_versions_of_its_modules(read):
    """`torch.nn.Module.state_dict` hangs them on the OrderedDict as an attribute."""
    inner = tensor(storage("0", 2), (2,), (1,))
    empty = code(Reduce(ORDERED_DICT, ()))
    entries = Raw(empty + code("a") + code(inner) + pickle.SETITEM)
    content = State(entries, {"_metadata": {"": {"version": 1}}})
    result = read(zip_file(content, {"0": bytes(8)}))
    assert_equal_bits(result, {"a": np.zeros(2, np.float32)})


def test_python_2_wrote_ordered_dicts_as_pairs_and_text_as_bytes(read, refused):
    short = Raw(pickle.SHORT_BINSTRING + b"\1a")
    content = Reduce(ORDERED_DICT, ([[short, 1], ("b", 2)],))
    assert read(zip_file(content)) == {"a": 1, "b": 2}
    refused(zip_file(Reduce(ORDERED_DICT, ([[1]],))), "must be made of pairs")
    refused(zip_file(Reduce(ORDERED_DICT, ([[(1, 2), 3]],))), "key of an OrderedDict")
    refused(zip_file(Reduce(ORDERED_DICT, (1,))), "must be made of a list")


# What is not built

SYSTEM = Global("posix", "system")
HOSTILE = {
    "system": (Reduce(SYSTEM, ("touch /tmp/natjax_pwned",)), "posix.system"),
    "eval": (Reduce(Global("builtins", "eval"), ("1/0",)), "builtins.eval"),
    "python 2": (Reduce(Global("__builtin__", "eval"), ("1/0",)), "__builtin__.eval"),
    "getattr": (
        Reduce(Reduce(Global("builtins", "getattr"), (Global("os", "path"), "join")), ("a", "b")),
        "builtins.getattr",
    ),
    "dotted name": (Reduce(Global("torch", "os.system"), ("ls",)), "torch.os.system"),
    "torch": (
        Reduce(Global("torch.storage", "_load_from_bytes"), ("",)),
        "torch.storage._load_from_bytes",
    ),
    "torch.load": (Reduce(Global("torch", "load"), ("x",)), "torch.load"),
    "setstate": (NewObject(Global("argparse", "Namespace"), {"a": 1}), "argparse.Namespace"),
    "numpy": (
        Reduce(Global("numpy._core.multiarray", "scalar"), (b"x",)),
        "numpy._core.multiarray.scalar",
    ),
    "bytes": (b"\0\1", "bytes"),
    "set": (Raw(pickle.EMPTY_SET + b"(K\1" + pickle.ADDITEMS), "set"),
    "frozenset": (Raw(b"(K\1" + pickle.FROZENSET), "frozenset"),
    "not text": (Raw(pickle.SHORT_BINSTRING + b"\1\xff"), "bytes"),
    "dtype": (Global("torch", "float32"), "torch.float32"),
    "bare storage": (storage("0", 1), "torch.FloatStorage"),
    "quantised": (
        Reduce(
            Global("torch._utils", "_rebuild_qtensor"),
            (storage("0", 1, "QInt8Storage"), 0, (1,), (1,), ()),
        ),
        "torch._utils._rebuild_qtensor",
    ),
    "quantised storage": (
        tensor(storage("0", 1, "QInt8Storage"), (1,), (1,)),
        "torch.QInt8Storage",
    ),
    "module": (Persistent(("module", "x", "y")), "module"),
    "terminal control": (Reduce(Global("\x1b[2J", "x"), ()), "\x1b[2J.x"),
}


@pytest.mark.parametrize(("value", "name"), HOSTILE.values(), ids=HOSTILE)
def test_everything_else_is_left_out_by_name_and_the_rest_is_kept(read, value, name):
    loaded = set(sys.modules)
    weight = tensor(storage("1", 1), (1,), (1,))
    content = {"before": weight, "odd": value, "after": weight}
    data = {"0": bytes(4), "1": bytes(4)}
    for file in (zip_file(content, data), legacy_file(content, _used(value, data))):
        result = read(file)
        assert list(result) == ["before", "odd", "after"]
        assert isinstance(result["odd"], Skipped)
        assert result["odd"].name == name
        assert_equal_bits({"a": result["after"]}, {"a": np.zeros(1, np.float32)})
    assert not pathlib.Path("/tmp/natjax_pwned").exists()
    assert set(sys.modules) == loaded


def _used(value, data):
    """The older format lists the storages that tensors use, and no others."""
    return data if value == storage("0", 1) else {"1": data["1"]}


@pytest.mark.parametrize(
    ("key", "name"),
    [(b")", "key of type tuple"), (code(2**64), "key of type int"), (b"]", "key of type list")],
)
def test_keys_that_cannot_be_trusted_are_replaced(read, key, name):
    assert read(zip_file(PROTO + b"}" + key + b"K\1s.")) == {Skipped(name): 1}


def test_attributes_are_dropped(read):
    assert read(zip_file(State([1], {"append": 2}))) == [1]


def test_training_checkpoint(read):
    """As timm writes them: names of classes, an optimizer, a NumPy scalar."""
    scalar = Reduce(Global("numpy.core.multiarray", "scalar"), (Global("numpy", "dtype"), b"1"))
    content = {
        "epoch": 3,
        "state_dict": {"module.a": tensor(storage("0", 1), (1,), (1,))},
        "args": NewObject(Global("argparse", "Namespace"), {"lr": 0.1, "betas": (0.9, 0.999)}),
        "metric": scalar,
        "optimizer": {"state": {0: {"step": 1}}, "param_groups": [{"params": [0]}]},
    }
    result = read(zip_file(content, {"0": np.float32(7).tobytes()}))
    assert result["args"] == Skipped("argparse.Namespace")
    assert result["metric"] == Skipped("numpy.core.multiarray.scalar")
    assert result["optimizer"] == content["optimizer"]
    assert result["state_dict"]["module.a"] == 7


# Layouts that lie

F4 = storage("0", 4)
LAYOUTS = {
    "past the end": (F4, (5,), (1,), 0),
    "offset past the end": (F4, (4,), (1,), 1),
    "scalar past the end": (F4, (), (), 4),
    "empty past the end": (F4, (0,), (1,), 5),
    "stride past the end": (F4, (2, 2), (3, 1), 0),
    "vast stride": (F4, (2,), (2**62,), 0),
    "vast offset": (F4, (1,), (1,), 2**63 - 1),
    "offset beyond 64 bits": (F4, (1,), (1,), 2**70),
    "negative offset": (F4, (1,), (1,), -1),
    "negative size": (F4, (-1,), (1,), 0),
    "two negative sizes": (F4, (-2, -2), (1, 1), 0),
    "negative stride": (F4, (2,), (-1,), 3),
    "expanded to terabytes": (F4, (2**40,), (0,), 0),
    "expanded a little": (F4, (5,), (0,), 0),
    "product beyond 64 bits": (F4, (2**33, 2**33), (0, 0), 0),
    "product that wraps to 4": (F4, (2**32, 2**31, 4), (0, 0, 1), 0),
    "empty but vast": (F4, (0, 2**62), (1, 1), 0),
    "many axes": (F4, (1,) * 65, (1,) * 65, 0),
    "axes differ": (F4, (2, 2), (1,), 0),
    "list as shape": (F4, [4], (1,), 0),
    "float as size": (F4, (4.0,), (1,), 0),
    "bool as size": (F4, (True,), (1,), 0),
    "bool as offset": (F4, (1,), (1,), False),
    "text as offset": (F4, (1,), (1,), "0"),
    "number as storage": (4, (4,), (1,), 0),
    "text as storage": ("0", (4,), (1,), 0),
    "name as storage": (ORDERED_DICT, (4,), (1,), None),
}


@pytest.mark.parametrize(("held", "shape", "strides", "offset"), LAYOUTS.values(), ids=LAYOUTS)
def test_layouts_that_do_not_fit_are_refused(read, refused, held, shape, strides, offset):
    if held is ORDERED_DICT:  # stands for a storage of a type that is not known
        assert read(zip_file(tensor(held, shape, strides), {})) == Skipped(
            "collections.OrderedDict"
        )
        return
    message = "must (lie|be|have)"
    content = tensor(held, shape, strides, offset)
    refused(zip_file(content, {"0": bytes(16)}), message)
    refused(legacy_file(content, {"0": bytes(16)} if held is F4 else {}), message)


IDENTITIES = {
    "text": "storage",
    "nothing": (),
    "short": ("storage", Global("torch", "FloatStorage"), "0"),
    "name as text": ("storage", "torch.FloatStorage", "0", "cpu", 4),
    "wrong name": ("storage", ORDERED_DICT, "0", "cpu", 4),
    "key as number": ("storage", Global("torch", "FloatStorage"), 0, "cpu", 4),
    "negative": ("storage", Global("torch", "FloatStorage"), "0", "cpu", -4),
    "bool": ("storage", Global("torch", "FloatStorage"), "0", "cpu", True),
    "too many": ("storage", Global("torch", "FloatStorage"), "0", "cpu", 5),
    "too few": ("storage", Global("torch", "FloatStorage"), "0", "cpu", 3),
    "terabytes": ("storage", Global("torch", "FloatStorage"), "0", "cpu", 2**42),
    "beyond 64 bits": ("storage", Global("torch", "FloatStorage"), "0", "cpu", 2**80),
    "no such key": ("storage", Global("torch", "FloatStorage"), "1", "cpu", 4),
    "key as path": ("storage", Global("torch", "FloatStorage"), "../data.pkl", "cpu", 4),
    "too long": ("storage", Global("torch", "FloatStorage"), "0", "cpu", 4, None, None),
}


@pytest.mark.parametrize("identity", IDENTITIES.values(), ids=IDENTITIES)
def test_persistent_ids_that_do_not_fit_are_refused(read, refused, identity):
    content = tensor(Persistent(identity), (1,), (1,))
    if identity[1:2] == (ORDERED_DICT,):  # of a type that is not known
        assert isinstance(read(zip_file(content, {"0": bytes(16)})), Skipped)
        return
    refused(zip_file(content, {"0": bytes(16)}), "storage")
    refused(legacy_file(content, {"0": bytes(16)}), "storage|more bytes")


ARRAY = tensor(storage("0", 4), (4,), (1,))


@pytest.mark.parametrize("place", range(5))
def test_tensors_in_a_persistent_id_are_refused(refused, place):
    """Comparing an array gives another array, and no answer."""
    identity = ["storage", Global("torch", "FloatStorage"), "0", "cpu", 4]
    identity[place] = ARRAY
    content = tensor(Persistent(tuple(identity)), (4,), (1,))
    refused(zip_file(content, {"0": bytes(16)}), "persistent id must name a storage")


@pytest.mark.parametrize("place", range(7))
def test_tensors_as_arguments_are_refused_or_of_no_matter(read, refused, place):
    args = [storage("0", 4), 0, (4,), (1,), False, Reduce(ORDERED_DICT, ()), {}]
    args[place] = ARRAY
    file = zip_file(Reduce(REBUILD, tuple(args)), {"0": bytes(16)})
    if place in (4, 5):  # whether there is a gradient, and hooks
        assert_equal_bits({"a": read(file)}, {"a": np.zeros(4, np.float32)})
    else:
        refused(file, "tensor.* must")


def test_tensors_as_names_and_keys_are_not_used(read, refused):
    data = {"0": bytes(16)}
    refused(zip_file(Reduce(ARRAY, ()), data), "only a name with a tuple can be built")
    refused(zip_file(Reduce(REBUILD, ARRAY), data), "only a name with a tuple can be built")
    refused(zip_file(b"\x80\2" + code(ARRAY) + b"K\1\x93.", data), "must be made of two strings")
    assert read(zip_file(b"\x80\2}" + code(ARRAY) + b"Ns.", data)) == {
        Skipped("key of type ndarray"): None
    }
    refused(legacy_file({}, data, version=ARRAY), "must be of version 1001, got a ndarray")


def test_one_storage_has_one_type_and_size(refused):
    content = [tensor(F4, (1,), (1,)), tensor(storage("0", 4, "IntStorage"), (1,), (1,))]
    refused(zip_file(content, {"0": bytes(16)}), "must be the same wherever it is named")
    content = [tensor(F4, (1,), (1,)), tensor(storage("0", 3), (1,), (1,))]
    refused(zip_file(content, {"0": bytes(16)}), "must be the same wherever it is named")


def test_truth_values_are_0_or_1(refused):
    content = tensor(storage("0", 2, "BoolStorage"), (2,), (1,))
    refused(zip_file(content, {"0": b"\1\2"}), "must be 0 or 1")
    refused(legacy_file(content, {"0": b"\1\2"}, widths=1), "must be 0 or 1")


def test_marks_of_a_lazy_view_are_refused(refused):
    rest = (False, Reduce(ORDERED_DICT, ()), {"neg": True})
    content = tensor(F4, (4,), (1,), rest=rest)
    refused(zip_file(content, {"0": bytes(16)}), "must be stored as it is")


@pytest.mark.parametrize("args", [(), (1,), (F4,), (F4, 0, (4,), (1,), 1, 2, 3, 4)])
def test_builders_with_wrong_arguments(refused, args):
    refused(zip_file(Reduce(REBUILD, args), {"0": bytes(16)}), "a tensor must be made of")
    refused(zip_file(Reduce(Global("torch", "Size"), args), {"0": bytes(16)}), "torch.Size must")
    name = Global("torch._utils", "_rebuild_parameter")
    refused(zip_file(Reduce(name, (1, *args)), {"0": bytes(16)}), "a parameter must")
    name = Global("torch._utils", "_rebuild_tensor_v3")
    refused(zip_file(Reduce(name, (1, *args)), {"0": bytes(16)}), "and a dtype")


# Pickles that are no good, or too good

PROTO = b"\x80\2"
PICKLES = {
    "empty": b"",
    "no protocol": b"N.",
    "protocol 0": b"\x80\0N.",
    "protocol 9": b"\x80\x09N.",
    "no end": PROTO + b"N",
    "empty stack": PROTO + b".",
    "two values": PROTO + b"NN.",
    "open mark": PROTO + b"(N.",
    "tuple without mark": PROTO + b"t.",
    "mark as value": PROTO + b"N(R.",
    "tuple of nothing": PROTO + b"N\x87.",
    "reduce on nothing": PROTO + b"R.",
    "reduce a number": PROTO + b"K\1)R.",
    "reduce without tuple": PROTO + b"ccollections\nOrderedDict\n]R.",
    "append to dict": PROTO + b"}Na.",
    "items of a list": PROTO + b"]NNs.",
    "odd items": PROTO + b"}(Nu.",
    "recall nothing": PROTO + b"h\7.",
    "memo of nothing": PROTO + b"q\0.",
    "build nothing": PROTO + b"b.",
    "short number": PROTO + b"J\0\0.",
    "negative length": PROTO + pickle.BINSTRING + b"\xff\xff\xff\xff.",
    "long integer": PROTO + pickle.LONG4 + struct.pack("<i", 300) + bytes(300) + b".",
    "negative integer length": PROTO + pickle.LONG4 + struct.pack("<i", -1) + b".",
    "name without end": PROTO + b"ccollections\nOrderedDict",
    "long name": PROTO + b"c" + b"a" * 600 + b"\nb\n.",
    "name in latin1": PROTO + b"c\xff\nb\n.",
    "name of numbers": PROTO + b"K\1K\2\x93.",
    "lone surrogate": PROTO + pickle.BINUNICODE + b"\3\0\0\0\xed\xa0\x80N.",
    "text integer": PROTO + b"I1\n.",
    "extension": PROTO + b"\x82\1.",
    "instance": PROTO + b"(ios\nsystem\n.",
    "duplicate": PROTO + b"N2\x86.",
    "text persistent id": PROTO + b"Pstorage\n.",
    "out of band buffer": PROTO + b"\x97.",
    "unknown": PROTO + b"\xff.",
    "trailing": PROTO + b"N.N",
    "list in itself": PROTO + b"]q\0h\0a.",
    "deep lists": PROTO + b"]" * 5000 + b"a" * 4999 + b".",
    "deep tuples": PROTO + b")" + b"\x85" * 5000 + b".",
    "deep marks": PROTO + b"(" * 5000 + b".",
    "deep dicts": PROTO + b"}" + b"}K\1" * 3000 + b".",
}


@pytest.mark.parametrize("data", PICKLES.values(), ids=PICKLES)
def test_wrong_pickles_are_refused(refused, data):
    refused(zip_file(data), "weights.pth: ")
    # Bytes after the pickle belong to the next one there.
    refused(legacy_file(data), "weights.pth: ")


def doubled(levels, start, combine):
    """A value in itself twice, so many times over."""
    return PROTO + b"(" + start + b"".join(map(combine, range(levels))) + b"t."


BOMBS = {
    "vast memo index": PROTO + b"N" + pickle.LONG_BINPUT + b"\xff\xff\xff\x7fh\0.",
    "vast string": PROTO + pickle.BINUNICODE + b"\xff\xff\xff\xff.",
    "vast long string": PROTO + pickle.BINUNICODE8 + b"\xff" * 7 + b"\x7f.",
    "vast bytes": PROTO + pickle.BINBYTES8 + b"\xff" * 7 + b"\x7f.",
    "vast array of bytes": PROTO + pickle.BYTEARRAY8 + b"\0\0\0\0\1\0\0\0.",
    "vast frame": PROTO + pickle.FRAME + b"\xff" * 8 + b".",
    "tuples doubled": doubled(60, b")", lambda i: b"q\0h\0\x86"),
    "lists doubled": doubled(60, b"]", lambda i: b"q\0]h\0ah\0a"),
    "dicts doubled": doubled(60, b"}", lambda i: b"q\0}K\1h\0sK\2h\0s"),
    "doubled tuple as key": doubled(60, b")", lambda i: b"q\0h\0\x86")[:-2] + b"q\0}h\0Nst.",
    "dicts without end": PROTO + b"}" * 2_000_000,
    "OrderedDicts without end": PROTO + b"ccollections\nOrderedDict\nq\0" + b"h\0)R" * 500_000,
    "tensors without end": PROTO
    + code(REBUILD)
    + b"q\0"
    + code((F4, 0, (1,) * 16, (1,) * 16))
    + b"q\1"
    + b"h\0h\1R" * 400_000,
    "lists of one tensor without end": PROTO
    + code(tensor(F4, (4,), (1,)))
    + b"q\0"
    + b"]h\0a" * 400_000,
    "names without end": PROTO + code(Global("torch", "Size")) * 200_000,
}
# Without the checks of types at run time, as those take longer than the rest; memory is the
# system's count, which NumPy's and Python's own do not escape.
READ_BOMBS = """
import json, resource, sys, time
from natjax.weights.formats import read_file
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[1:]:
    began = time.process_time()
    try:
        read_file(path)
        message = ""
    except ValueError as error:
        message = f"{type(error).__name__}: {error}"
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) / 1024
    print(json.dumps([path, message, time.process_time() - began, peak]))
"""


def test_bombs_are_refused_without_much_memory_or_time(tmp_path):
    paths = []
    for name, data in BOMBS.items():
        for kind, write in {"zip": zip_file, "legacy": legacy_file}.items():
            if kind == "zip" or len(data) < 1000:  # the long ones stop at the same count
                paths.append(tmp_path / f"{name}.{kind}")
                paths[-1].write_bytes(write(data, {"0": bytes(16)}))
    command = [sys.executable, "-c", READ_BOMBS, *map(str, paths)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    results = [json.loads(line) for line in output.splitlines()]
    assert [path for path, *_ in results] == [str(path) for path in paths]
    for path, message, seconds, peak in results:
        assert message.startswith(f"WeightsError: {path}: "), path
        assert "memory" not in message, path
        assert seconds < 30, path
        assert peak < 500, path  # MiB, this one and those before


def test_keys_that_collide_are_replaced(read):
    """Python's hash of an integer is its remainder by 2**61 - 1."""
    keys = b"".join(code(index * (2**61 - 1)) + b"N" for index in range(5, 2000))
    assert read(zip_file(PROTO + b"}(" + keys + b"u.")) == {Skipped("key of type int"): None}


def assert_cheap(function, most_bytes, most_seconds=60):
    """Run with memory and processor time bounded."""
    tracemalloc.start()
    began = time.process_time()
    try:
        return function()
    finally:
        assert time.process_time() - began < most_seconds
        assert tracemalloc.get_traced_memory()[1] < most_bytes
        tracemalloc.stop()


# Archives that are no good

GOOD_CONTENT, GOOD_DATA = tensors(
    {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.arange(4, dtype=np.int64)}
)
PICKLED = dump(GOOD_CONTENT)
GOOD_ENTRIES = [("x/data.pkl", PICKLED), *((f"x/data/{k}", v) for k, v in GOOD_DATA.items())]


def renamed(old, new, entries=GOOD_ENTRIES):
    return zip_bytes([(new if name == old else name, data) for name, data in entries])


def patched(data, place, value):
    return data[:place] + value + data[place + len(value) :]


def central(data, index=0):
    """Where a record of the directory begins."""
    place = -1
    for _ in range(index + 1):
        place = data.index(b"PK\1\2", place + 1)
    return place


GOOD = zip_bytes(GOOD_ENTRIES)
END = GOOD.rindex(b"PK\5\6")
ARCHIVES = {
    "compressed": (zip_bytes(GOOD_ENTRIES, compression=zipfile.ZIP_DEFLATED), "stored as it is"),
    "no data.pkl": (renamed("x/data.pkl", "x/other.pkl"), "must have one FOLDER/data.pkl"),
    "deep data.pkl": (renamed("x/data.pkl", "x/y/data.pkl"), "must have one FOLDER/data.pkl"),
    "two data.pkl": (zip_bytes([*GOOD_ENTRIES, ("y/data.pkl", PICKLED)]), "must have one FOLDER"),
    "torchscript": (zip_bytes([*GOOD_ENTRIES, ("x/constants.pkl", PICKLED)]), "TorchScript"),
    "storage elsewhere": (renamed("x/data/0", "y/data/0"), "must be in the archive"),
    "nothing": (zip_bytes([("x/", b"")]), "must have one FOLDER/data.pkl"),
    "parent": (renamed("x/data/0", "x/../0"), "plain relative name"),
    "absolute": (renamed("x/data/0", "/data/0"), "plain relative name"),
    "backslash": (renamed("x/data/0", "x\\data\\0"), "plain relative name"),
    "name not text": (GOOD.replace(b"x/data/0", b"x/data/\xff"), "must be UTF-8"),
    "same name twice": (GOOD.replace(b"x/data/1", b"x/data/0"), "must be there once"),
    "header with another name": (patched(GOOD, GOOD.index(b"x/data/0"), b"y"), "not where"),
    "header elsewhere": (patched(GOOD, central(GOOD, 1) + 42, b"\1\0\0\0"), "overlap|not where"),
    "header far away": (patched(GOOD, central(GOOD, 2) + 42, b"\xf0\xff\xff\xff"), "cut off"),
    "size past the end": (patched(GOOD, central(GOOD, 2) + 20, b"\0\1\0\0" * 2), "before the dir"),
    "vast size": (patched(GOOD, central(GOOD, 2) + 20, b"\xf0\xff\xff\x7f" * 2), "before the dir"),
    "two sizes": (patched(GOOD, central(GOOD, 2) + 24, b"\0\0\0\1"), "must have one size"),
    "size 64 without": (patched(GOOD, central(GOOD, 2) + 20, b"\xff" * 8), "lacks a 64-bit"),
    "overlap": (patched(GOOD, central(GOOD, 1) + 20, b"\x50\0\0\0" * 2), "must not overlap"),
    "encrypted": (patched(GOOD, central(GOOD) + 8, b"\1"), "encrypted"),
    "unknown method": (patched(GOOD, central(GOOD) + 10, b"\x63"), "stored as it is"),
    "directory damaged": (patched(GOOD, central(GOOD, 1), b"XX"), "directory is damaged"),
    "directory far away": (patched(GOOD, END + 16, b"\xf0\xff\xff\xff"), "must end before"),
    "directory too long": (patched(GOOD, END + 12, b"\xf0\xff\xff\x7f"), "must end before"),
    "more entries": (patched(GOOD, END + 10, b"\x09\0"), "expected where"),
    "many entries": (patched(GOOD, END + 10, b"\xff\xff"), "64-bit record is damaged"),
    "two disks": (patched(GOOD, END + 4, b"\1\0"), "last record is damaged"),
    "comment": (patched(GOOD, END + 20, b"\1\0"), "last record is damaged"),
    "bytes after": (GOOD + b"x", "last record is damaged"),
    "no directory": (GOOD[:END], "no directory"),
    "values damaged": (patched(GOOD, GOOD.index(GOOD_DATA["0"]) + 4, b"\1"), "checksum"),
    "pickle damaged": (patched(GOOD, GOOD.index(PICKLED) + 9, b"\1"), "checksum"),
}


def test_the_good_archive_is_good(read):
    np.testing.assert_array_equal(read(GOOD)["a"], [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(read(GOOD)["b"], [0, 1, 2, 3])


@pytest.mark.parametrize(("data", "message"), ARCHIVES.values(), ids=ARCHIVES)
def test_wrong_archives_are_refused(refused, data, message):
    refused(data, message)


LEGACY = legacy_file({"a": tensor(F4, (4,), (1,))}, {"0": bytes(16)})
OTHER = {"0": bytes(16)}
CONTENT = {"a": tensor(F4, (4,), (1,))}
LEGACIES = {
    "other version": (legacy_file(CONTENT, OTHER, version=1000), "must be of version 1001"),
    "other magic": (legacy_file(CONTENT, OTHER, magic=MAGIC + 1), "must be of torch.save"),
    "key missing": (legacy_file(CONTENT, OTHER, keys=[]), "list of storages"),
    "key twice": (legacy_file(CONTENT, OTHER, keys=["0", "0"]), "list of storages"),
    "key unknown": (legacy_file(CONTENT, OTHER, keys=["0", "1"]), "list of storages"),
    "key a number": (legacy_file(CONTENT, OTHER, keys=[0]), "list of storages"),
    "keys no list": (legacy_file(CONTENT, OTHER, keys="0"), "list of storages"),
    "size differs": (legacy_file(CONTENT, {"0": bytes(20)}), "16 bytes as declared, got 5"),
    "element size differs": (legacy_file(CONTENT, OTHER, widths=8), "as declared, got 2"),
    "bytes after": (LEGACY + b"x", "1 more bytes"),
    "negative size": (patched(LEGACY, len(LEGACY) - 17, b"\xff"), "as declared, got -"),
}


@pytest.mark.parametrize(("data", "message"), LEGACIES.values(), ids=LEGACIES)
def test_wrong_legacy_files_are_refused(refused, data, message):
    refused(data, message)


@pytest.mark.parametrize("twentieth", range(20))
@pytest.mark.parametrize("name", ["nat_b_strided.pth", "nat_b_legacy.pth"])
def test_cut_off_files_are_refused(refused, name, twentieth):
    data = (goldens.COMMITTED / "pth" / name).read_bytes()
    message = "cut off|empty" if twentieth == 0 else "cut off"
    refused(data[: len(data) * twentieth // 20], message)


# Memory


@pytest.mark.parametrize("write", [zip_file, legacy_file], ids=["zip", "legacy"])
def test_reading_needs_the_memory_of_the_file(tmp_path, write):
    path = tmp_path / "large.pth"
    content, data = tensors({f"{n}": np.full(2**20, n, np.float32) for n in range(10)})
    path.write_bytes(write(content, data))
    size = path.stat().st_size
    weights = assert_cheap(lambda: read_torch(path), 1.2 * size)
    assert [weights[f"{n}"][-1] for n in range(10)] == list(range(10))


# Fuzzing: mutated files give our error or a result of their size, and nothing else

EDITS = st.lists(
    st.tuples(
        st.floats(0, 1, exclude_max=True),
        st.sampled_from(["set", "insert", "delete", "repeat"]),
        st.one_of(st.binary(min_size=1, max_size=4), st.sampled_from([b"\xff" * 4, b"\xff" * 8])),
    ),
    min_size=1,
    max_size=6,
)


def mutate(data, edits):
    for where, kind, value in edits:
        place = int(where * len(data))
        match kind:
            case "set":
                data = patched(data, place, value)
            case "insert":
                data = data[:place] + value + data[place:]
            case "delete":
                data = data[:place] + data[place + len(value) :]
            case "repeat":
                data = data[: place + 40] + data[place:]
    return data


FUZZED_CONTENT = {
    "state_dict": Reduce(ORDERED_DICT, ([["a", tensor(F4, (2, 2), (2, 1))]],)),
    "b": [tensor(storage("1", 3, "LongStorage"), (3,), (1,)), 1.5, "text", None],
    "args": NewObject(Global("argparse", "Namespace"), {"lr": 0.1}),
}
FUZZED_DATA = {"0": bytes(16), "1": bytes(24)}
FUZZED_PICKLE = dump(FUZZED_CONTENT)


def check_fuzzed(path, data):
    path.write_bytes(data)
    with contextlib.suppress(WeightsError):
        content = assert_cheap(lambda: read_torch(path), 4 * MIB, 10)
        arrays = [leaf for leaf in leaves(content) if isinstance(leaf, np.ndarray)]
        assert all(array.nbytes <= len(data) for array in arrays)
        # Looks at every element.
        assert all(len(array.tobytes()) == array.nbytes for array in arrays)


def leaves(content):
    match content:
        case dict():
            return [leaf for part in content.values() for leaf in leaves(part)]
        case list() | tuple():
            return [leaf for part in content for leaf in leaves(part)]
    return [content]


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz") / "fuzzed.pth"


@given(edits=EDITS)
@settings(max_examples=100)
def test_fuzzed_archives(scratch, edits):
    check_fuzzed(scratch, mutate(zip_file(FUZZED_PICKLE, FUZZED_DATA), edits))


@given(edits=EDITS)
@settings(max_examples=100)
def test_fuzzed_pickles_in_good_archives(scratch, edits):
    check_fuzzed(scratch, zip_file(mutate(FUZZED_PICKLE, edits), FUZZED_DATA))


@given(edits=EDITS)
@settings(max_examples=100)
def test_fuzzed_legacy_files(scratch, edits):
    check_fuzzed(scratch, mutate(legacy_file(FUZZED_PICKLE, FUZZED_DATA), edits))


FRAGMENTS = [
    *(bytes([code]) for code in range(256)),
    *(b"K\0", b"K\1", b"K\4", b"q\0", b"q\1", b"h\0", b"h\1", b"J\xff\xff\xff\xff"),
    *(code(part) for part in (F4, "0", (), (2, 2), {"a": 1}, [1], ORDERED_DICT, REBUILD)),
    *(code(Global("torch", name)) for name in ("FloatStorage", "Size", "float32", "load")),
    code(tensor(F4, (2, 2), (2, 1))),
    b"\x8c\1a",
    b"(",
    b"(",
]


@given(parts=st.lists(st.sampled_from(FRAGMENTS), max_size=30))
@settings(max_examples=100)
def test_random_programs(scratch, parts):
    check_fuzzed(scratch, zip_file(PROTO + b"".join(parts) + b".", FUZZED_DATA))


def test_the_fuzzed_file_is_good(scratch):
    for file in (zip_file, legacy_file):
        data = file(FUZZED_PICKLE, FUZZED_DATA)
        if file is legacy_file:  # its longs count as 3 elements, not 6
            place = len(data) - 32
            data = patched(data, place, struct.pack("<q", 3))
        scratch.write_bytes(data)
        content = read_torch(scratch)
        assert content["state_dict"]["a"].shape == (2, 2)
        assert content["args"] == Skipped("argparse.Namespace")


def test_reading_leaves_no_file_open(tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(GOOD)
    before = os.listdir("/proc/self/fd") if pathlib.Path("/proc/self/fd").exists() else []
    weights = read_torch(path)
    after = os.listdir("/proc/self/fd") if before else []
    assert len(after) == len(before)
    path.write_bytes(b"")  # the arrays do not look at the file
    np.testing.assert_array_equal(weights["a"], [[0, 1, 2], [3, 4, 5]])
