"""Files and servers made to hurt: each is refused, or costs no more than an honest one.

Memory is bounded by what `natjax.weights.source` promises, measured by tracemalloc; work by the
same budget, since whatever is copied or built is charged to it.
"""

import http.server
import json
import os
import pickle
import re
import socket
import struct
import threading
import tracemalloc

import numpy as np
import pytest
from safetensors.numpy import save
from torch_writer import (
    ORDERED_DICT,
    Global,
    Persistent,
    Reduce,
    code,
    safetensors_file,
    storage,
    tensor,
    zip_bytes,
    zip_file,
)

import natjax
from natjax.weights import WeightsError, convert_weights
from natjax.weights.download import cached_path, download
from natjax.weights.files import read_file

PROTO = b"\x80\2"
MIB = 2**20
# What natjax.weights.source promises.
ALLOWED, FACTOR = 32 * MIB, 4


def read_cheaply(path):
    """Read a file and hold it to its share of memory; what comes out may be our error."""
    size = path.stat().st_size
    tracemalloc.start()
    try:
        return read_file(path).content
    except WeightsError as error:
        return error
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak <= ALLOWED + FACTOR * size, (peak, size)


@pytest.fixture
def read(tmp_path):
    def read_bytes(data):
        path = tmp_path / "weights.pth"
        path.write_bytes(data)
        return read_cheaply(path)

    return read_bytes


def assert_too_costly(result):
    assert isinstance(result, WeightsError), type(result)
    assert "but the file asks for more" in str(result)


# Copies without end

SIZE = Global("torch", "Size")
PAIRS = code([(f"k{i}", None) for i in range(4000)])
REBUILT = {
    "OrderedDict of pairs": (ORDERED_DICT, b"(" + PAIRS + b"t"),
    "torch.Size": (SIZE, b"(" + code(tuple(range(4000))) + b"t"),
    "unknown class": (Global("a", "b"), b"(" + PAIRS + b"t"),
}


@pytest.mark.parametrize(("name", "args"), REBUILT.values(), ids=REBUILT)
def test_one_value_built_again_and_again(read, name, args):
    head = PROTO + b"(" + code(name) + b"q\0" + args + b"q\1"
    result = read(zip_file(head + b"h\0h\1R" * 600 + b"t."))
    if name == REBUILT["unknown class"][0]:  # nothing is built, so nothing is copied
        assert not isinstance(result, WeightsError)
    else:
        assert_too_costly(result)


def test_text_that_takes_four_bytes_a_character(read):
    wide = ("\U0001f642" + "a" * 9_000_000).encode()
    data = PROTO + b"(" + (pickle.BINUNICODE + struct.pack("<I", len(wide)) + wide) * 3 + b"t."
    assert_too_costly(read(zip_file(data)))


def test_empty_containers_without_end(read):
    for start in (b"]", b"}", b"(", b")\x85"):
        assert_too_costly(read(zip_file(PROTO + start * 1_000_000 + b".")))


def test_extra_fields_of_an_archive(read):
    extra = struct.pack("<HH", 0x9999, 0) * 16_383
    entries = [(f"x/data/{i}", b"") for i in range(50)]
    data = zip_bytes([("x/data.pkl", pickle.dumps({}, 2)), *entries])
    place = data.index(b"PK\1\2")
    head, directory, end = data[:place], data[place : data.rindex(b"PK\5\6")], data[-22:]
    records = re.split(rb"(?=PK\x01\x02)", directory)[1:]
    padded = b"".join(_padded(record, extra) for record in records)
    end = end[:12] + struct.pack("<L", len(padded)) + end[16:]
    assert_too_costly(read(head + padded + end))


def _padded(record, extra):
    name = struct.unpack_from("<H", record, 28)[0]
    return record[:30] + struct.pack("<H", len(extra)) + record[32 : 46 + name] + extra


def test_safetensors_header_of_many_small_values(tmp_path):
    header = '{"__metadata__": {}, "a": [' + "[]," * 2_790_000 + "[]]}"
    path = tmp_path / "x.safetensors"
    path.write_bytes(safetensors_file(header))
    assert path.stat().st_size < 8.5e6
    assert isinstance(read_cheaply(path), WeightsError)


def test_safetensors_header_of_many_tensors(tmp_path):
    entry = '"%d":{"dtype":"U8","shape":[],"data_offsets":[0,0]},'
    header = "{" + "".join(entry % i for i in range(150_000))[:-1] + "}"
    path = tmp_path / "x.safetensors"
    path.write_bytes(safetensors_file(header))
    assert isinstance(read_cheaply(path), WeightsError)


# Arrays where none is expected

SCALAR = tensor(storage("0", 4), (), ())
ODD_ARRAYS = {
    "persistent id": Persistent(Reduce(Global("torch", "Size"), ((),))),
    "0-d persistent id": Persistent(SCALAR),
    "0-d view": tensor(
        Persistent(("storage", Global("torch", "FloatStorage"), "0", "cpu", 4, SCALAR)), (1,), (1,)
    ),
    "0-d pairs": Reduce(ORDERED_DICT, (SCALAR,)),
    "0-d pair": Reduce(ORDERED_DICT, ([SCALAR],)),
    "0-d size": Reduce(Global("torch", "Size"), (SCALAR,)),
    "0-d shape": tensor(storage("0", 4), SCALAR, SCALAR),
    "0-d metadata": tensor(storage("0", 4), (4,), (1,), rest=(False, None, SCALAR)),
}


@pytest.mark.parametrize("value", ODD_ARRAYS.values(), ids=ODD_ARRAYS)
def test_scalars_in_odd_places(read, value):
    result = read(zip_file(value, {"0": bytes(16)}))
    assert isinstance(result, WeightsError)
    assert "must" in str(result)


@pytest.mark.parametrize("value", [2, 3, 255])
def test_truth_values_of_bytes(read, value):
    """A tensor that has its dtype from the file and its bytes from a storage without one."""
    held = Persistent(("storage", Global("torch.storage", "UntypedStorage"), "0", "cpu", 2))
    rest = (False, Reduce(ORDERED_DICT, ()), Global("torch", "bool"))
    rebuild = Global("torch._utils", "_rebuild_tensor_v3")
    file = zip_file(tensor(held, (2,), (1,), 0, rebuild, rest), {"0": bytes([1, value])})
    assert "must be 0 or 1" in str(read(file))
    good = zip_file(tensor(held, (2,), (1,), 0, rebuild, rest), {"0": b"\1\0"})
    np.testing.assert_array_equal(read(good), [True, False])


# Metadata

CONFIG = {"family": "NAT", "dim": 8, "depths": [1], "num_heads": [1], "kernel_size": 3}
ODD_CONFIGS = [
    '"mlp_ratio": Infinity',
    '"mlp_ratio": NaN',
    '"mlp_ratio": 1e308',
    '"mlp_ratio": [1]',
    f'"dim": {10**400}',
    f'"dim": {10**30}',
    f'"num_classes": {10**30}',
    f'"in_channels": {2**62}',
    f'"kernel_size": {10**18 + 1}',
    f'"input_size": {10**30}',
    '"layer_scale": "x"',
    '"layer_scale": Infinity',
    '"overlapping": [[]]',
    '"num_classes": true',
]


@pytest.mark.parametrize("change", ODD_CONFIGS)
def test_numbers_in_metadata(change, tmp_path):
    text = json.dumps(CONFIG)[:-1] + f", {change}}}"
    path = _own_file(tmp_path, {"natjax.config": text})
    with pytest.raises(WeightsError, match=r"config in the file cannot be read|two models|fit"):
        convert_weights(path, tmp_path / "y.safetensors")


def _own_file(folder, metadata, prefix=""):
    config = natjax.NATConfig(dim=8, depths=(1,), num_heads=(1,), kernel_size=3)
    model = natjax.NAT(config, rngs=natjax_rngs())
    natjax.save_weights(model, folder / "own.safetensors")
    arrays = read_file(folder / "own.safetensors").content
    (folder / "x.safetensors").write_bytes(
        save({prefix + key: array for key, array in arrays.items()}, metadata)
    )
    return folder / "x.safetensors"


def natjax_rngs():
    from flax import nnx

    return nnx.Rngs(0)


def test_a_wide_table_of_global_attention(tmp_path):
    """PyTorch's file holds an index for each pair of tokens and layer: 2.9 GB of 76 kB."""
    config = natjax.IsotropicConfig(
        dim=4, depth=2, num_heads=1, kernel_size=None, patch_size=16, input_size=16 * 64
    )
    natjax.save_weights(natjax.Isotropic(config, rngs=natjax_rngs()), tmp_path / "x.safetensors")
    tracemalloc.start()
    try:
        with pytest.raises(WeightsError, match=r"index tables .*; write \.safetensors"):
            convert_weights(tmp_path / "x.safetensors", tmp_path / "y.pth")
        assert tracemalloc.get_traced_memory()[1] < 64 * MIB
    finally:
        tracemalloc.stop()
    assert not (tmp_path / "y.pth").exists()


# Text of strangers

ESCAPES = "\x1b[2J\x1b]0;owned\x07\u202e\r" + "A" * 60_000


def assert_harmless(text):
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "\r" not in text
    assert len(text) < 20_000


@pytest.mark.parametrize("key", ["natjax.model", "natjax.version", "natjax.config"])
def test_metadata_is_shown_harmless(key, tmp_path, capsys):
    metadata = {"natjax.config": json.dumps(CONFIG)} | {key: ESCAPES}
    if key == "natjax.version":
        metadata["natjax.config"] = "{}"
    path = _own_file(tmp_path, metadata)
    from natjax.cli import main

    main(["convert", str(path), str(tmp_path / "y.pth")])
    printed = capsys.readouterr()
    assert_harmless(printed.out)
    assert_harmless(printed.err)
    assert printed.out or printed.err


def test_keys_are_shown_harmless(tmp_path, capsys):
    path = _own_file(tmp_path, {"natjax.config": json.dumps(CONFIG)}, prefix=f"{ESCAPES}.")
    from natjax.cli import main

    main(["convert", str(path), str(tmp_path / "y.pth")])
    printed = capsys.readouterr()
    assert_harmless(printed.out)
    assert_harmless(printed.err)


def test_many_long_keys_are_shown_short(tmp_path):
    config = natjax.NATConfig(dim=8, depths=(1,), num_heads=(1,), kernel_size=3)
    model = natjax.NAT(config, rngs=natjax_rngs())
    natjax.save_weights(model, tmp_path / "x.safetensors", naming="official")
    arrays = dict(read_file(tmp_path / "x.safetensors").content)
    arrays = {f"backbone.{key}": array for key, array in arrays.items()}
    arrays |= {f"{i}{ESCAPES[:300]}.x": np.zeros(1, np.float32) for i in range(500)}
    (tmp_path / "x.safetensors").write_bytes(save(arrays))
    report = natjax.load_weights(model, tmp_path / "x.safetensors", strict=False)
    assert_harmless(str(report))
    assert "and 480 more" in str(report)
    arrays = {key.removeprefix("backbone."): array for key, array in arrays.items()}
    with pytest.raises(WeightsError, match="and 480 more") as caught:
        natjax.load_weights(model, arrays)
    assert_harmless(str(caught.value))


# Servers


class Dripping(http.server.BaseHTTPRequestHandler):
    """A byte a connection, for ever."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.asked += 1
        if self.server.asked > 50:  # so that a client without end fails the test and ends
            return self.send_error(404)
        start = int(self.headers.get("Range", "bytes=0-")[6:-1])
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-99999/100000")
        self.send_header("Content-Length", str(100_000 - start))
        self.send_header("ETag", '"one"')
        self.end_headers()
        self.wfile.write(b"x")
        self.close_connection = True
        return None

    def log_message(self, *_):
        pass


@pytest.fixture
def dripping(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Dripping) as server:
        server.asked = 0
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def test_a_byte_a_connection_ends(dripping, tmp_path):
    url = f"http://127.0.0.1:{dripping.server_port}/x.pth"
    with pytest.raises(WeightsError, match="the download has failed"):
        download(url, tmp_path, pause=0.001)
    assert dripping.asked <= 8


def test_a_status_line_is_shown_harmless(monkeypatch, tmp_path):
    monkeypatch.setenv("NO_PROXY", "*")
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve():
            connection, _ = listening.accept()
            with connection:
                connection.recv(10_000)
                connection.sendall(b"HTTP/1.1 418 \x1b[2J" + b"A" * 60_000 + b"\r\n\r\n")

        threading.Thread(target=serve, daemon=True).start()
        with pytest.raises(WeightsError) as caught:
            download(f"http://127.0.0.1:{listening.getsockname()[1]}/x", tmp_path, attempts=1)
    assert_harmless(str(caught.value))


@pytest.mark.parametrize("planted", [".part", ".part.json"])
def test_a_planted_link_is_not_followed(dripping, tmp_path, planted):
    url = f"http://127.0.0.1:{dripping.server_port}/x.pth"
    target = cached_path(url, tmp_path / "cache")
    target.parent.mkdir()
    victim = tmp_path / "victim"
    victim.write_text("precious")
    target.with_name(target.name + planted).symlink_to(victim)
    with pytest.raises(WeightsError):
        download(url, tmp_path / "cache", pause=0.001)
    assert victim.read_text() == "precious"


def test_cache_keys_are_whole_hashes(tmp_path):
    name = cached_path("https://a.org/x/model.safetensors", tmp_path).name
    assert re.match(r"[0-9a-f]{64}-", name)


# Files that change


def test_a_file_is_opened_and_read_once(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    path.write_bytes(save({"a": np.arange(5000, dtype=np.float32)}))
    opened, system_open = [], os.open

    def counted(name, *args, **options):
        opened.append(os.fspath(name))
        return system_open(name, *args, **options)

    monkeypatch.setattr(os, "open", counted)
    content = read_file(path).content
    assert opened == [str(path)]
    os.truncate(path, 0)  # a mapped array would kill the process
    assert content["a"][-1] == 4999


def test_a_file_that_shrinks_while_it_is_read(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    path.write_bytes(save({"a": np.arange(5000, dtype=np.float32)}))
    status = os.fstat

    def shrink(descriptor):
        found = status(descriptor)
        os.truncate(path, 1000)
        return found

    monkeypatch.setattr(os, "fstat", shrink)
    with pytest.raises(WeightsError, match="cut off"):
        read_file(path)
