"""Settings of kernels: tables of them, and where they come from."""

import json

import pytest

from natjax.kernels import checks
from natjax.kernels.backends import pallas_triton
from natjax.kernels.backends.triton_common.config import KernelConfig
from natjax.kernels.spec import CallSpec
from natjax.kernels.tuning import settings, tables

KIND = "NVIDIA H100 80GB HBM3"
SPEC = CallSpec(checks.neighborhood((14, 14), 7), 32, 32, "bfloat16", True)
ONE, TWO, THREE = (KernelConfig((4, 4), (4, side)) for side in (4, 8, 16))


def resolve(kernel, spec, kind):
    return settings.resolve(pallas_triton, kernel, spec, kind)


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Folders in place of natjax's own and of the user's; the latter is not set."""
    shipped, own = tmp_path / "shipped", tmp_path / "own"
    own.mkdir()
    monkeypatch.setattr(tables, "TUNED", shipped)
    monkeypatch.delenv("NATJAX_TUNED", raising=False)
    tables.tuned.cache_clear()
    yield shipped, own
    tables.tuned.cache_clear()


def path_in(folder):
    return tables.path_of("pallas_triton", KIND, folder)


def put(folder, config, kernel="forward", spec=SPEC):
    path = path_in(folder)
    tables.update(path, spec.key, kernel, config, {"microseconds": 1.5})
    return path


def test_keys_tell_specs_apart():
    changes = [
        {},
        {"neighborhood": checks.neighborhood((14, 15), 7)},
        {"neighborhood": checks.neighborhood((14, 14), 5)},
        {"neighborhood": checks.neighborhood((14, 14), 7, stride=2)},
        {"neighborhood": checks.neighborhood((14, 14), 7, dilation=(1, 2))},
        {"neighborhood": checks.neighborhood((14, 14), 7, is_causal=(True, False))},
        {"head_dim": 64},
        {"value_dim": 64},
        {"dtype": "float32"},
        {"has_bias": False},
    ]
    fields = {name: getattr(SPEC, name) for name in CallSpec.__slots__}
    keys = {CallSpec(**fields | change).key for change in changes}
    assert len(keys) == len(changes)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "nvidia-h100-80gb-hbm3.json"),
        ("interpreted", "interpreted.json"),
        ("../Odd (kind)/", "odd-kind.json"),
    ],
)
def test_files_are_named_by_device_kind(kind, name, tmp_path):
    assert tables.path_of("some_backend", kind, tmp_path) == tmp_path / "some_backend" / name


def test_tables_come_back(tmp_path):
    path = put(tmp_path / "new", ONE)
    put(tmp_path / "new", KernelConfig((4, 4), (4, 4), num_warps=8, num_stages=5), "dquery")
    expected = {"forward": ONE, "dquery": KernelConfig((4, 4), (4, 4), 8, 5)}
    assert tables.read(path, KernelConfig) == {SPEC.key: expected}
    assert json.loads(path.read_text())["measured"][SPEC.key]["dquery"] == {"microseconds": 1.5}
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # nothing left over


def test_updating_replaces_a_kernel_and_keeps_the_others(tmp_path):
    other = CallSpec(checks.neighborhood((9,), 3), 8, 8, "float32", False)
    put(tmp_path, ONE)
    put(tmp_path, TWO, "dquery")
    put(tmp_path, KernelConfig((16,), (16,)), spec=other)
    table = tables.read(put(tmp_path, THREE), KernelConfig)
    assert table[SPEC.key] == {"forward": THREE, "dquery": TWO}
    assert table[other.key] == {"forward": KernelConfig((16,), (16,))}


def test_a_failed_update_leaves_the_table_as_it_was(tmp_path, monkeypatch):
    path = put(tmp_path, ONE)
    before = path.read_bytes()

    def fail(*args):
        raise OSError("no space left on device")

    monkeypatch.setattr(tables.Path, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        put(tmp_path, TWO)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def entry(**changes):
    return {"tile": [4, 4], "chunk": [4, 4], "num_warps": 4, "num_stages": 2} | changes


def table(**changes):
    return {"configs": {SPEC.key: {"forward": entry(**changes)}}}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("", "must hold JSON"),
        ("{", "must hold JSON"),
        ("[" * 100_000, "must hold JSON"),
        (b"\xff\xfe", "must hold JSON"),
        ([], "must hold an object as the table.*got list"),
        ({}, "an object as 'configs'.*got NoneType"),
        ({"configs": {"14,14": 5}}, "an object as entry '14,14'.*got int"),
        ({"configs": {"14,14": {"fwd": entry()}}}, r"kernels among \('forward'.*with 'fwd'"),
        ({"configs": {"14,14": {"forward": []}}}, "'14,14', kernel 'forward'.*got list"),
        ({"configs": {"14": {"forward": entry()}}}, "one side of tile and chunk for each axis"),
        (table(num_wraps=4), r"the settings \['tile', 'chunk'.*num_wraps"),
        (table(tile=[3, 8]), r"kernel 'forward', breaks a rule: tile must.*got \(3, 8\)"),
        (table(num_warps="4"), "breaks a rule: num_warps must be 1, 2, 4, 8 or 16; got '4'"),
        (table(num_stages=10**9), "breaks a rule: num_stages must be from 1 to 8"),
        (table(chunk=[2**40, 1]), r"breaks a rule: chunk must.*got \(1099511627776, 1\)"),
    ],
    ids=[f"case{i}" for i in range(15)],
)
def test_malformed_tables_are_refused_whole(document, message, tmp_path, unchecked):
    path = tmp_path / "gpu.json"
    if not isinstance(document, str | bytes):
        document = json.dumps(document)
    path.write_bytes(document.encode() if isinstance(document, str) else document)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=message) as info:
        tables.read(path, KernelConfig)
    assert str(path) in str(info.value)
    with pytest.raises(ValueError, match=message):
        tables.update(path, SPEC.key, "forward", ONE, {})
    assert path.read_bytes() == before


def test_settings_that_are_given_come_first_then_tuned_then_suggested(folders, monkeypatch):
    shipped, own = folders
    assert resolve("forward", SPEC, KIND) == (
        KernelConfig.suggest("forward", SPEC),
        "suggested",
    )
    put(shipped, ONE)
    put(own, TWO)
    assert resolve("forward", SPEC, KIND) == (ONE, "tuned")
    monkeypatch.setenv("NATJAX_TUNED", str(own))
    assert resolve("forward", SPEC, KIND) == (TWO, "NATJAX_TUNED")
    with settings.using({"forward": ONE}), settings.using({"forward": THREE}):
        assert resolve("forward", SPEC, KIND) == (THREE, "given")
    assert resolve("forward", SPEC, KIND) == (TWO, "NATJAX_TUNED")


def test_what_one_source_lacks_comes_from_the_next(folders, monkeypatch):
    shipped, own = folders
    put(shipped, ONE, "dquery")
    put(own, TWO)
    monkeypatch.setenv("NATJAX_TUNED", str(own))
    with settings.using({"dbias": THREE}):
        sources = {k: resolve(k, SPEC, KIND)[1] for k in ("forward", "dquery", "dbias")}
    assert sources == {"forward": "NATJAX_TUNED", "dquery": "tuned", "dbias": "given"}
    assert resolve("qk", SPEC, KIND)[1] == "suggested"
    # Other shapes and kinds of devices have settings of their own.
    other = CallSpec(checks.neighborhood((14, 15), 7), 32, 32, "bfloat16", True)
    assert resolve("forward", other, KIND)[1] == "suggested"
    assert resolve("forward", SPEC, "NVIDIA A100")[1] == "suggested"


def test_a_variable_that_names_no_folder_is_an_error(folders, monkeypatch):
    monkeypatch.setenv("NATJAX_TUNED", "nowhere")
    with pytest.raises(ValueError, match="NATJAX_TUNED must name a folder; got 'nowhere'"):
        resolve("forward", SPEC, KIND)


def test_watching_lists_what_is_resolved(folders):
    with settings.watching() as outer, settings.using({"forward": ONE}):
        resolve("forward", SPEC, KIND)
        with settings.watching() as inner:
            resolve("dquery", SPEC, KIND)
    resolve("qk", SPEC, KIND)
    assert [(x.kernel, x.source) for x in outer] == [("forward", "given"), ("dquery", "suggested")]
    assert inner == outer[1:]
    assert outer[0].config == ONE
    assert outer[0].spec == SPEC


def test_tables_that_natjax_brings_are_well_formed():
    for path in tables.TUNED.glob("*/*.json"):
        assert tables.read(path, KernelConfig), path
