"""Files of weights of any format, told apart by their content."""

import json
import os
import struct
import threading

import goldens
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy as safetensors_numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_writer import Global, Reduce, dump, legacy_file, safetensors_file, tensors, zip_file

from natjax.weights.formats import read_file
from natjax.weights.torchfile.tensors import Skipped
from natjax.weights.untrusted import WeightsError

ARRAYS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.arange(4, dtype=np.int64),
    "c": np.full((), 1.5, np.float16),
}


def entry(dtype, shape, start, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def write(folder, data, name="weights"):
    path = folder / name
    path.write_bytes(data)
    return path


def assert_refused(folder, data, message, name="weights"):
    path = write(folder, data, name)
    with pytest.raises(WeightsError, match=message) as caught:
        read_file(path)
    assert str(caught.value).startswith(f"{path}: ")


def assert_same(content, arrays):
    assert sorted(content) == sorted(arrays)
    for name, array in arrays.items():
        assert content[name].dtype == array.dtype
        np.testing.assert_array_equal(content[name], array)


# Formats


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors", "weights", "weights.html"])
def test_the_content_tells_the_format_not_the_name(tmp_path, name):
    content, data = tensors({"a": ARRAYS["a"]})
    for file in (zip_file, legacy_file):
        result = read_file(write(tmp_path, file(content, data), name))
        assert (result.path, result.format, result.metadata) == (tmp_path / name, "torch", {})
        assert_same(result.content, {"a": ARRAYS["a"]})
    saved = safetensors_numpy.save(ARRAYS, {"format": "np"})
    result = read_file(write(tmp_path, saved, name))
    assert (result.format, result.metadata) == ("safetensors", {"format": "np"})
    assert_same(result.content, ARRAYS)


def test_path_as_text(tmp_path):
    path = write(tmp_path, safetensors_numpy.save(ARRAYS))
    assert read_file(str(path)).path == path
    assert read_file(path).metadata == {}


def test_what_is_no_weights_is_left_out_by_name(tmp_path):
    content = {"args": Reduce(Global("argparse", "Namespace"), ())}
    path = write(tmp_path, zip_file(content))
    assert read_file(path).content == {"args": Skipped("argparse.Namespace")}


def test_golden_file():
    (path,) = goldens.pth_files("nat_b_bf16.pth")
    result = read_file(path)
    assert result.format == "torch"
    assert {array.dtype for array in result.content.values()} == {np.dtype(ml_dtypes.bfloat16)}


# Safetensors

DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
    "C64": np.complex64,
}


@pytest.mark.parametrize("dtype", DTYPES)
def test_safetensors_dtypes(tmp_path, dtype):
    array = (np.arange(6) % 2).astype(DTYPES[dtype]).reshape(2, 3)
    header = {"a": entry(dtype, [2, 3], 0, array.nbytes)}
    path = write(tmp_path, safetensors_file(json.dumps(header), array.tobytes()))
    assert_same(read_file(path).content, {"a": array})


def header_with(**entries):
    return json.dumps(entries)


WRONG_SAFETENSORS = {
    "header cut off": (safetensors_file(header_with(a=entry("F32", [1], 0, 4)))[:30], "cut off"),
    "values cut off": (
        safetensors_file(header_with(a=entry("F32", [2], 0, 8)), bytes(7)),
        r"must have \d+ bytes by its header, got \d+; it is cut off",
    ),
    "values too long": (
        safetensors_file(header_with(a=entry("F32", [2], 0, 8)), bytes(9)),
        "by its header",
    ),
    "vast header": (struct.pack("<Q", 2**62) + b"{}", "at most 8388608 bytes"),
    "long header": (struct.pack("<Q", 2**23 + 1) + b"{}", "at most 8388608 bytes"),
    "not JSON": (safetensors_file("{'a': 1}"), "header is damaged"),
    "deep JSON": (safetensors_file('{"a":' + "[" * 100_000), "header is damaged"),
    "no offsets": (safetensors_file('{"a": {}}'), "header is damaged"),
    "offsets no list": (safetensors_file('{"a": {"data_offsets": 3}}'), "header is damaged"),
    "offsets text": (safetensors_file('{"a": {"data_offsets": [0, "x"]}}'), "header is damaged"),
    "entry a number": (safetensors_file('{"a": 1}'), "header is damaged"),
    "infinite end": (safetensors_file('{"a": {"data_offsets": [0, Infinity]}}'), "is damaged"),
    "shape differs": (
        safetensors_file(header_with(a=entry("F32", [3], 0, 8)), bytes(8)),
        "not as safetensors",
    ),
    "hole": (
        safetensors_file(header_with(a=entry("F32", [1], 4, 8)), bytes(8)),
        "not as safetensors",
    ),
    "overlap": (
        safetensors_file(
            header_with(a=entry("F32", [2], 0, 8), b=entry("F32", [1], 4, 8)), bytes(8)
        ),
        "not as safetensors",
    ),
    "product beyond 64 bits": (
        safetensors_file(header_with(a=entry("F32", [2**62, 4], 0, 0))),
        "not as safetensors",
    ),
    "empty but vast": (
        safetensors_file(header_with(a=entry("F32", [0, 2**62], 0, 0))),
        "not as safetensors",
    ),
    "many axes": (
        safetensors_file(header_with(a=entry("F32", [1] * 70, 0, 4)), bytes(4)),
        "not as safetensors",
    ),
    "unknown dtype": (
        safetensors_file(header_with(a=entry("F3", [1], 0, 4)), bytes(4)),
        "not as safetensors",
    ),
    "dtype without NumPy": (
        safetensors_file(header_with(a=entry("F8_E4M3", [4], 0, 4)), bytes(4)),
        "tensor 'a' must be of a dtype among .*BF16.* got F8_E4M3",
    ),
    "metadata a number": (safetensors_file('{"__metadata__": {"a": 1}}'), "not as safetensors"),
}


@pytest.mark.parametrize(("data", "message"), WRONG_SAFETENSORS.values(), ids=WRONG_SAFETENSORS)
def test_wrong_safetensors_files_are_refused(tmp_path, data, message):
    assert_refused(tmp_path, data, message)


# What is no file of weights

IMPOSTORS = {
    "empty": (b"", "the file is empty; download it again"),
    "html": (b"\n<!DOCTYPE html>\n<html><head>", "got a web page; the download has failed"),
    "html without doctype": (b"<html lang=en>", "got a web page"),
    "xml": (b'<?xml version="1.0"?><Error><Code>NoSuchKey</Code>', "an XML document"),
    "git lfs": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
        "got a Git LFS pointer; .*git lfs pull",
    ),
    "index": (b'{"metadata": {}, "weight_map": {}}', "a JSON document"),
    "gzip": (b"\x1f\x8b\x08\0\0\0\0\0", "a gzip file; unpack it first"),
    "hdf5": (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    "numpy": (b"\x93NUMPY\1\0", "a NumPy array"),
    "tar": (bytes(257) + b"ustar" + bytes(250), "a tar archive"),
    "pickle": (dump({"a": 1}), "a pickle that torch.save has not written; .* can run code"),
    "text": (b"hello", "a file that begins with b'hello'"),
    "terminal": (b"\x1b[2Jhello", r"begins with b'\\x1b\[2Jhello'"),
    "zeros": (bytes(1000), "a file that begins with"),
    "one byte": (b"P", "a file that begins with b'P'"),
    "zip cut off": (zip_file({"a": 1})[:100], "cut off; download it again"),
    "zip head": (b"PK\3\4", "cut off; download it again"),
    "npz": (zip_file({"a": 1}).replace(b"data.pkl", b"data.npy"), "one FOLDER/data.pkl, got"),
}


@pytest.mark.parametrize(("data", "message"), IMPOSTORS.values(), ids=IMPOSTORS)
def test_other_files_are_refused_by_what_they_are(tmp_path, data, message):
    assert_refused(tmp_path, data, message, name="nat_tiny.pth")


def test_paths_that_are_no_file(tmp_path):
    cases = {
        tmp_path / "missing.pth": "there is no such file",
        tmp_path: "got a folder",
        tmp_path / "a\0b": "there cannot be such a file",
        tmp_path / ("x" * 5000): "cannot be read",
    }
    for path, message in cases.items():
        with pytest.raises(WeightsError, match=message):
            read_file(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    errors = []

    def read():
        with pytest.raises(WeightsError, match="regular file") as caught:
            read_file(tmp_path / "pipe")
        errors.append(caught.value)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(20)
    assert errors


# Fuzzing

GOOD = safetensors_numpy.save(ARRAYS, {"format": "np"})
EDITS = st.lists(
    st.tuples(st.integers(0, len(GOOD) - 1), st.binary(min_size=1, max_size=3)), max_size=5
)
TOKENS = [*'{}[]":,0123456789', '"F32"', '"BF16"', '"shape"', '"data_offsets"', "-1", "1e9"]


@given(edits=EDITS, cut=st.integers(0, len(GOOD)), longer=st.binary(max_size=3))
@settings(max_examples=300)
def test_fuzzed_safetensors(tmp_path_factory, edits, cut, longer):
    data = bytearray(GOOD)
    for place, value in edits:
        data[place : place + len(value)] = value
    whole = cut % 2 or not edits  # half of the files keep their length
    _check_fuzzed(tmp_path_factory, bytes(data) if whole else bytes(data[:cut]) + longer)


@given(text=st.lists(st.sampled_from(TOKENS), max_size=40).map("".join), size=st.integers(0, 16))
@settings(max_examples=200)
def test_fuzzed_headers(tmp_path_factory, text, size):
    _check_fuzzed(tmp_path_factory, safetensors_file("{" + text, bytes(size)))


@given(data=st.binary(max_size=600))
@settings(max_examples=100)
def test_random_bytes(tmp_path_factory, data):
    _check_fuzzed(tmp_path_factory, data)


def _check_fuzzed(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "fuzzed"
    path.write_bytes(data)
    try:
        content = read_file(path).content
    except WeightsError:
        return
    assert all(isinstance(array, np.ndarray) for array in content.values())
    assert sum(array.nbytes for array in content.values()) <= len(data)
