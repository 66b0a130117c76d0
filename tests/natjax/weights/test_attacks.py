"""Files and servers made to hurt: each is refused, or costs no more than an honest one.

Memory is bounded by what `natjax.weights.untrusted` promises, measured by tracemalloc; work by the
same budget, since whatever is copied or built is charged to it.
"""

import http.server
import json
import os
import pickle
import re
import socket
import struct
import subprocess
import sys
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
from natjax.weights.cache import cached_path
from natjax.weights.download import download
from natjax.weights.formats import read_file
from natjax.weights.structure import _levels
from natjax.weights.untrusted import show

PROTO = b"\x80\2"
MIB = 2**20
# What natjax.weights.untrusted promises.
ALLOWED, FACTOR = 32 * MIB, 4


@pytest.fixture
def read(tmp_path):
    """What a file of these bytes holds, or our error."""

    def read_bytes(data):
        path = tmp_path / "weights.pth"
        path.write_bytes(data)
        try:
            return read_file(path).content
        except WeightsError as error:
            return error

    return read_bytes


# Copies without end. They are read in a process of their own, as the checks of types at run time
# take longer than the reading, and their memory would count.

SIZE = Global("torch", "Size")
PAIRS = code([(f"k{i}", None) for i in range(4000)])
REBUILT = {
    "OrderedDict of pairs": (ORDERED_DICT, b"(" + PAIRS + b"t"),
    "torch.Size": (SIZE, b"(" + code(tuple(range(4000))) + b"t"),
    "unknown class": (Global("a", "b"), b"(" + PAIRS + b"t"),
}
WIDE = ("\U0001f642" + "a" * 9_000_000).encode()


def rebuilt(name, args):
    """One value built 600 times of a list that is there once."""
    head = PROTO + b"(" + code(name) + b"q\0" + args + b"q\1"
    return zip_file(head + b"h\0h\1R" * 600 + b"t.")


def padded_archive():
    """A directory of 3 MB of extra fields, each of 4 bytes."""
    extra = struct.pack("<HH", 0x9999, 0) * 16_383
    entries = [(f"x/data/{i}", b"") for i in range(50)]
    data = zip_bytes([("x/data.pkl", pickle.dumps({}, 2)), *entries])
    place = data.index(b"PK\1\2")
    head, directory, end = data[:place], data[place : data.rindex(b"PK\5\6")], data[-22:]
    records = re.split(rb"(?=PK\x01\x02)", directory)[1:]
    padded = b"".join(_padded(record, extra) for record in records)
    return head + padded + end[:12] + struct.pack("<L", len(padded)) + end[16:]


def _padded(record, extra):
    name = struct.unpack_from("<H", record, 28)[0]
    return record[:30] + struct.pack("<H", len(extra)) + record[32 : 46 + name] + extra


def vast_header():
    """A header of 8.4 MB with as many small lists as go into it."""
    header = '{"__metadata__": {}, "a": [' + "[]," * 2_790_000 + "[]]}"
    return safetensors_file(header)


def many_tensors():
    """A header of 150,000 empty tensors."""
    entry = '"%d":{"dtype":"U8","shape":[],"data_offsets":[0,0]},'
    return safetensors_file("{" + "".join(entry % i for i in range(150_001))[:-1] + "}")


COSTLY = {
    **{name: rebuilt(*parts) for name, parts in REBUILT.items() if name != "unknown class"},
    "wide text": zip_file(
        PROTO + b"(" + (pickle.BINUNICODE + struct.pack("<I", len(WIDE)) + WIDE) * 3 + b"t."
    ),
    "empty lists": zip_file(PROTO + b"]" * 1_000_000 + b"."),
    "empty dicts": zip_file(PROTO + b"}" * 1_000_000 + b"."),
    "marks": zip_file(PROTO + b"(" * 1_000_000 + b"."),
    "memo": zip_file(PROTO + b"N" + pickle.MEMOIZE * 1_000_000 + b"."),
    "extra fields": padded_archive(),
    "vast header": vast_header(),
    "many tensors": many_tensors(),
}
CHEAP = {"unknown class": rebuilt(*REBUILT["unknown class"])}
READ = """
import json, sys, tracemalloc
from natjax.weights.formats import read_file
for path in sys.argv[1:]:
    tracemalloc.start()
    try:
        read_file(path)
        message = ""
    except ValueError as error:
        message = f"{type(error).__name__}: {error}"
    print(json.dumps([message, tracemalloc.get_traced_memory()[1]]))
    tracemalloc.stop()
"""


def test_what_asks_for_more_than_its_share_is_refused_before_it_gets_it(tmp_path):
    files = COSTLY | CHEAP
    paths = [tmp_path / f"{name}.pth" for name in files]
    for path, data in zip(paths, files.values(), strict=True):
        path.write_bytes(data)
    command = [sys.executable, "-c", READ, *map(str, paths)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    for path, line in zip(paths, output.splitlines(), strict=True):
        message, peak = json.loads(line)
        assert ("but the file asks for more" in message) == (path.stem in COSTLY), path
        assert peak <= ALLOWED + FACTOR * path.stat().st_size, (path, peak)


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
    file = safetensors_file(
        '{"a": {"dtype": "BOOL", "shape": [2], "data_offsets": [0, 2]}}', bytes([1, value])
    )
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
    '"dilations": ' + json.dumps([[1] * 100_000]),
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


def test_work_on_names_is_in_proportion(tmp_path):
    """Counting the blocks of each of many levels went through all of them each time."""

    class Counted(dict):
        looked = 0

        def __iter__(self):
            for key in super().__iter__():
                Counted.looked += 1
                yield key

    blocks = Counted({(level, 0): f"levels.{level}.blocks.0" for level in range(2000)})
    first, depths = _levels(blocks)
    assert (len(first), set(depths)) == (2000, {1})
    assert Counted.looked <= 4 * len(blocks)


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


def test_a_message_is_harmless_whatever_reaches_it():
    """Even where somebody has forgotten to show a text short."""
    message = str(WeightsError(f"first line\n{ESCAPES}"))
    assert_harmless(message)
    assert message.startswith("first line\n\\x1b[2J")
    assert_harmless(str(WeightsError("\ud800")))
    "".join(str(WeightsError("\ud800"))).encode()


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("a" * 10**6, "'" + "a" * 76 + "..."),
        (b"\x1b" * 10**6, "b'" + "\\x1b" * 18 + "\\x1..."),
        (10**5000, "an integer of 16610 bits"),
        ((1,) * 10**5, "(1, 1, 1, 1, 1, 1, 1, 1, ...)"),
        ((10**5000,), "(an integer of 16610 bits)"),
        ({"a": 1}, "a dict"),
        (float("nan"), "nan"),
        (None, "None"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_are_shown_short(value, shown):
    assert show(value) == shown


def test_text_without_quotes():
    assert show("levels.0", bare=True) == "levels.0"
    assert show("\x1b[2J", bare=True) == r"'\x1b[2J'"
    assert show("", bare=True) == "''"
    assert show("a" * 100, bare=True, longest=10) == "aaaaaaa..."


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
