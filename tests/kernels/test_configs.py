"""Settings of kernels: their rules, tables of them, and where they come from."""

import json
import re

import pytest

from natjax.kernels import checks, configs
from natjax.kernels.configs import KERNELS, KernelConfig, Shape

KIND = "NVIDIA H100 80GB HBM3"
SHAPE = Shape(checks.neighborhood((14, 14), 7), 32, 32, "bfloat16", True)
ONE, TWO, THREE = (KernelConfig((4, 4), (4, side)) for side in (4, 8, 16))


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Folders in place of natjax's own and of the user's; the latter is not set."""
    shipped, own = tmp_path / "shipped", tmp_path / "own"
    own.mkdir()
    monkeypatch.setattr(configs, "TUNED", shipped)
    monkeypatch.delenv("NATJAX_TUNED", raising=False)
    configs.tuned_table.cache_clear()
    yield shipped, own
    configs.tuned_table.cache_clear()


def put(folder, config, kernel="forward", shape=SHAPE):
    path = configs.table_path(KIND, folder)
    configs.update_table(path, shape.key, kernel, config, {"microseconds": 1.5})
    return path


@pytest.mark.parametrize("name", ["tile", "chunk"])
@pytest.mark.parametrize(
    "sides",
    [
        (),
        (2, 2, 2, 2),
        (12,),
        (4, 2),
        (8192,),
        (16, 0),
        (16, -1),
        (16.0,),
        (True, 16),
        [16],
        "16",
        16,
    ],
    ids=str,
)
def test_sides_are_powers_of_two(name, sides, unchecked):
    rule = f"{name} must have 1 to 3 sides, powers of two whose product is from 16 to 4096"
    with pytest.raises(ValueError, match=re.escape(f"{rule}; got {sides!r}")):
        KernelConfig(**{"tile": (16,), "chunk": (16,), name: sides})


def test_tile_and_chunk_have_as_many_sides():
    with pytest.raises(ValueError, match=r"one side an axis each; got \(16,\) and \(4, 4\)"):
        KernelConfig((16,), (4, 4))


@pytest.mark.parametrize("value", [0, 3, 32, -1, 4.0, True, "4", None])
def test_num_warps(value, unchecked):
    message = re.escape(f"num_warps must be 1, 2, 4, 8 or 16; got {value!r}")
    with pytest.raises(ValueError, match=message):
        KernelConfig((16,), (16,), num_warps=value)


@pytest.mark.parametrize("value", [0, 9, -1, 2.0, True, "2", None])
def test_num_stages(value, unchecked):
    message = re.escape(f"num_stages must be from 1 to 8; got {value!r}")
    with pytest.raises(ValueError, match=message):
        KernelConfig((16,), (16,), num_stages=value)


def test_sides_fit_the_neighborhood():
    message = r"one side for each of 2 token axes; got \(16,\) and \(16,\)"
    with pytest.raises(ValueError, match=message):
        KernelConfig((16,), (16,)).blocks("forward", SHAPE.hood)


@pytest.mark.parametrize("kernel", KERNELS)
def test_rows_are_what_a_kernel_has_a_result_for(kernel):
    rows = {axis.rows for axis in ONE.blocks(kernel, SHAPE.hood).axes}
    assert rows == ({"keys"} if kernel in ("dkeyvalue", "av_transposed") else {"queries"})


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    ("shape", "dtype"), [((5,), "float32"), ((14, 14), "bfloat16"), ((3, 4, 9), "float16")]
)
def test_suggestions_are_candidates(kernel, shape, dtype):
    for head_dim in (8, 64, 256):
        hood = checks.neighborhood(shape, 3)
        shape_ = Shape(hood, head_dim, head_dim, dtype, False)
        suggested = configs.suggest(kernel, shape_)
        assert suggested in configs.candidates(kernel, shape_)
        assert suggested.blocks(kernel, hood).num_tiles > 0


def test_candidates_keep_to_the_largest_block():
    chosen = configs.candidates("forward", SHAPE, most=(32, 16))
    blocks = [config.blocks("forward", SHAPE.hood) for config in chosen]
    assert {b.num_rows for b in blocks} == {16, 32}
    assert {b.num_columns for b in blocks} == {16}


def test_keys_tell_shapes_apart():
    changes = [
        {},
        {"hood": checks.neighborhood((14, 15), 7)},
        {"hood": checks.neighborhood((14, 14), 5)},
        {"hood": checks.neighborhood((14, 14), 7, stride=2)},
        {"hood": checks.neighborhood((14, 14), 7, dilation=(1, 2))},
        {"hood": checks.neighborhood((14, 14), 7, is_causal=(True, False))},
        {"head_dim": 64},
        {"value_dim": 64},
        {"dtype": "float32"},
        {"has_bias": False},
    ]
    fields = {name: getattr(SHAPE, name) for name in Shape.__slots__}
    keys = {Shape(**fields | change).key for change in changes}
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
    assert configs.table_path(kind, tmp_path) == tmp_path / name


def test_tables_come_back(tmp_path):
    path = put(tmp_path / "new", ONE)
    put(tmp_path / "new", KernelConfig((4, 4), (4, 4), num_warps=8, num_stages=5), "dquery")
    expected = {"forward": ONE, "dquery": KernelConfig((4, 4), (4, 4), 8, 5)}
    assert configs.read_table(path) == {SHAPE.key: expected}
    assert json.loads(path.read_text())["measured"][SHAPE.key]["dquery"] == {"microseconds": 1.5}
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # nothing left over


def test_updating_replaces_a_kernel_and_keeps_the_others(tmp_path):
    other = Shape(checks.neighborhood((9,), 3), 8, 8, "float32", False)
    put(tmp_path, ONE)
    put(tmp_path, TWO, "dquery")
    put(tmp_path, KernelConfig((16,), (16,)), shape=other)
    table = configs.read_table(put(tmp_path, THREE))
    assert table[SHAPE.key] == {"forward": THREE, "dquery": TWO}
    assert table[other.key] == {"forward": KernelConfig((16,), (16,))}


def test_a_failed_update_leaves_the_table_as_it_was(tmp_path, monkeypatch):
    path = put(tmp_path, ONE)
    before = path.read_bytes()

    def fail(*args):
        raise OSError("no space left on device")

    monkeypatch.setattr(configs.Path, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        put(tmp_path, TWO)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def entry(**changes):
    return {"tile": [4, 4], "chunk": [4, 4], "num_warps": 4, "num_stages": 2} | changes


def table(**changes):
    return {"configs": {SHAPE.key: {"forward": entry(**changes)}}}


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
        configs.read_table(path)
    assert str(path) in str(info.value)
    with pytest.raises(ValueError, match=message):
        configs.update_table(path, SHAPE.key, "forward", ONE, {})
    assert path.read_bytes() == before


def test_settings_that_are_given_come_first_then_tuned_then_suggested(folders, monkeypatch):
    shipped, own = folders
    assert configs.resolve("forward", SHAPE, KIND) == (
        configs.suggest("forward", SHAPE),
        "suggested",
    )
    put(shipped, ONE)
    put(own, TWO)
    assert configs.resolve("forward", SHAPE, KIND) == (ONE, "tuned")
    monkeypatch.setenv("NATJAX_TUNED", str(own))
    assert configs.resolve("forward", SHAPE, KIND) == (TWO, "NATJAX_TUNED")
    with configs.using({"forward": ONE}), configs.using({"forward": THREE}):
        assert configs.resolve("forward", SHAPE, KIND) == (THREE, "given")
    assert configs.resolve("forward", SHAPE, KIND) == (TWO, "NATJAX_TUNED")


def test_what_one_source_lacks_comes_from_the_next(folders, monkeypatch):
    shipped, own = folders
    put(shipped, ONE, "dquery")
    put(own, TWO)
    monkeypatch.setenv("NATJAX_TUNED", str(own))
    with configs.using({"dbias": THREE}):
        sources = {k: configs.resolve(k, SHAPE, KIND)[1] for k in ("forward", "dquery", "dbias")}
    assert sources == {"forward": "NATJAX_TUNED", "dquery": "tuned", "dbias": "given"}
    assert configs.resolve("qk", SHAPE, KIND)[1] == "suggested"
    # Other shapes and kinds of devices have settings of their own.
    other = Shape(checks.neighborhood((14, 15), 7), 32, 32, "bfloat16", True)
    assert configs.resolve("forward", other, KIND)[1] == "suggested"
    assert configs.resolve("forward", SHAPE, "NVIDIA A100")[1] == "suggested"


def test_a_variable_that_names_no_folder_is_an_error(folders, monkeypatch):
    monkeypatch.setenv("NATJAX_TUNED", "nowhere")
    with pytest.raises(ValueError, match="NATJAX_TUNED must name a folder; got 'nowhere'"):
        configs.resolve("forward", SHAPE, KIND)


def test_watching_lists_what_is_resolved(folders):
    with configs.watching() as outer, configs.using({"forward": ONE}):
        configs.resolve("forward", SHAPE, KIND)
        with configs.watching() as inner:
            configs.resolve("dquery", SHAPE, KIND)
    configs.resolve("qk", SHAPE, KIND)
    assert [(x.kernel, x.source) for x in outer] == [("forward", "given"), ("dquery", "suggested")]
    assert inner == outer[1:]
    assert outer[0].config == ONE
    assert outer[0].shape == SHAPE


def test_tables_that_natjax_brings_are_well_formed():
    for path in configs.TUNED.glob("*.json"):
        assert configs.read_table(path), path
