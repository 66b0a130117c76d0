import contextlib
import dataclasses
import errno
import gc
import itertools
import json
import os
import shutil
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from natjax.train.checkpoint import checkpointer
from natjax.train.checkpoint.checkpointer import CheckpointWriter, list_steps, restore
from natjax.train.checkpoint.integrity import fingerprint, write_sums
from natjax.train.config.settings import CheckpointConfig, MeshConfig
from natjax.train.engine.sharding import make_mesh, state_sharding
from natjax.train.engine.state import TrainState, state_of
from natjax.train.errors import UserError, storage_problem

META = {"config": {"seed": 0, "run": None, "model": {"name": "nat_tiny"}}}
CONFIG = CheckpointConfig(every=1, keep_latest=2, keep_best=1)


def make_state(step: int, mesh=None) -> TrainState:
    params = {f"a.b{i}": jnp.arange(3000.0).reshape(3, 1000) + i + step for i in range(3)}
    opt = optax.adam(1e-3).init(params)
    state = TrainState(step=jnp.int32(step), params=params, statistics={}, opt=opt, ema=params)
    return jax.device_put(state, state_sharding(state, mesh or make_mesh(MeshConfig())))


def target(state: TrainState):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    ).items()


def write(writer, state, meta, score):
    writer.save(int(state.step), state.items(), meta, score)


def save(folder, steps, scores=None, config=CONFIG):
    with CheckpointWriter(folder, config) as writer:
        for index, step in enumerate(steps):
            score = scores[index] if scores else None
            write(writer, make_state(step), META, score)


def assert_same(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


@pytest.fixture
def saved(tmp_path):
    save(tmp_path, [1, 2])
    return tmp_path


@pytest.fixture(scope="module")
def one_saved(tmp_path_factory):
    """A checkpoint that is not to be changed."""
    folder = tmp_path_factory.mktemp("saved")
    save(folder, [1])
    return folder


@pytest.mark.oldest
def test_what_is_saved_comes_back(saved):
    restored = restore(saved, target(make_state(0)))
    assert restored.step == 2
    assert restored.meta["config"] == META["config"]
    assert_same(state_of(restored.items), make_state(2))


def test_values_are_those_at_the_time_of_saving(tmp_path):
    double = jax.jit(lambda tree: jax.tree.map(lambda x: x * 2, tree), donate_argnums=0)
    state = make_state(5)
    with CheckpointWriter(tmp_path, CONFIG) as writer:
        write(writer, state, {}, None)
        for _ in range(20):
            state = dataclasses.replace(state, params=double(state.params))
    assert_same(restore(tmp_path, target(make_state(0))).items["params"], make_state(5).params)


def test_newest_and_best_are_kept(tmp_path):
    save(tmp_path, [1, 2, 3, 4, 5], [0.1, 0.9, None, 0.3, 0.2])
    assert list_steps(tmp_path) == [2, 4, 5]
    assert sorted(p.stem for p in (tmp_path / "sums").iterdir()) == ["2", "4", "5"]


def test_a_score_that_comes_later_counts(tmp_path):
    save(tmp_path, [1, 2, 3, 4], [0.5, 0.9, None, None])
    assert list_steps(tmp_path) == [2, 3, 4]
    before = {path: path.read_bytes() for path in files_of(tmp_path / "3")}
    with CheckpointWriter(tmp_path, CONFIG) as writer:
        writer.rate(3, 0.8)
        assert list_steps(tmp_path) == [2, 3, 4]
        writer.rate(3, 0.9)  # the newer of equals, as if it had come in time
        assert list_steps(tmp_path) == [3, 4]
    assert {path: path.read_bytes() for path in files_of(tmp_path / "3")} == before
    save(tmp_path, [5, 6, 7], [0.1, None, 0.2])
    assert list_steps(tmp_path) == [3, 6, 7]
    assert sorted(p.stem for p in (tmp_path / "sums").iterdir()) == ["3", "6", "7"]
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert (scores["3"], scores["7"]) == (0.9, 0.2)
    assert "2" not in scores  # its checkpoint is gone


def test_a_checkpoint_without_score_never_counts_as_best(tmp_path):
    save(tmp_path, [1, 2, 3, 4], [None, 0.2, 0.1, None], dataclasses.replace(CONFIG, keep_best=3))
    assert list_steps(tmp_path) == [2, 3, 4]


@pytest.mark.parametrize("text", ["", "[1]", '{"x": 1}', '{"1": []}', None])
def test_scores_that_are_lost_cost_only_their_places(tmp_path, text):
    save(tmp_path, [1, 2, 3], [0.9, 0.1, 0.2])
    path = tmp_path / "scores.json"
    path.unlink() if text is None else path.write_text(text)
    save(tmp_path, [4, 5], [0.3, 0.1])
    assert list_steps(tmp_path) == [4, 5]


@pytest.mark.oldest
def test_a_checkpoint_of_one_mesh_restores_on_another(saved):
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))
    state = make_state(2, mesh)
    restored = restore(saved, target(state))
    assert_same(restored.items["params"], state.params)
    leaf = restored.items["params"]["a.b0"]
    assert leaf.sharding == NamedSharding(mesh, PartitionSpec(None, "fsdp"))


def test_a_part_can_be_restored_alone(saved):
    items = restore(saved, {"ema": target(make_state(0))["ema"]}).items
    assert list(items) == ["ema"]


def test_nothing_there(tmp_path):
    assert restore(tmp_path / "none", target(make_state(0))) is None


def test_a_step_that_is_not_there(saved):
    with pytest.raises(UserError, match=r"no checkpoint of step 7, but of \[1, 2\]"):
        restore(saved, target(make_state(0)), step=7)


def damage(path, kind):
    data = bytearray(path.read_bytes())
    if kind == "missing":
        path.unlink()
    elif kind == "flipped":
        data[len(data) // 2] ^= 16
        path.write_bytes(data)
    else:
        path.write_bytes(data[: len(data) // 2])


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)


@pytest.mark.parametrize("kind", ["missing", "flipped", "cut"])
def test_damage_in_any_file_is_noticed_and_named(one_saved, tmp_path, capsys, kind):
    folder = shutil.copytree(one_saved, tmp_path / "copy")
    for path in files_of(folder / "1"):
        whole = path.read_bytes()
        damage(path, kind)
        with pytest.raises(UserError, match="no sound checkpoint"):
            restore(folder, target(make_state(0)))
        assert f"is damaged ({path.relative_to(folder / '1')} is" in capsys.readouterr().err
        path.write_bytes(whole)
    assert restore(folder, target(make_state(0))).step == 1


# One file of each kind.
KINDS = (
    "_CHECKPOINT_METADATA",
    "meta/_METADATA",
    "meta/_strings.json",
    "params/_METADATA",
    "params/_sharding",
    "params/array_metadatas/process_0",
    "params/manifest.ocdbt",
    "params/d/*",
    "params/ocdbt.process_0/d/*",
    "step/d/*",
)


@pytest.mark.parametrize("pattern", KINDS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # Orbax drops coroutines when reading fails
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_without_checksums_damage_is_noticed_or_does_no_harm(one_saved, tmp_path, capsys, pattern):
    """A run killed right after a checkpoint was whole leaves it without checksums of files."""
    folder = shutil.copytree(one_saved, tmp_path / "copy")
    shutil.rmtree(folder / "sums")
    (path,) = (folder / "1").glob(pattern)
    damage(path, "flipped")
    try:
        restored = restore(folder, target(make_state(0)))
    except UserError:
        assert "is damaged" in capsys.readouterr().err
    else:
        assert_same(state_of(restored.items), make_state(1))
    gc.collect()  # what Orbax dropped


@pytest.mark.parametrize("kind", ["missing", "flipped", "cut"])
def test_a_damaged_checkpoint_is_named_set_aside_and_its_predecessor_used(saved, capsys, kind):
    biggest = max((saved / "2" / "params").rglob("*"), key=lambda p: p.stat().st_size)
    damage(biggest, kind)
    restored = restore(saved, target(make_state(0)), set_aside=saved.parent / "damaged")
    assert restored.step == 1
    message = capsys.readouterr().err
    assert f"checkpoint {saved / '2'} is damaged (params/" in message
    assert "trying the one before; it was moved to" in message
    assert list_steps(saved) == [1]
    save(saved, [2])  # the run goes on, and writes that step again
    assert restore(saved, target(make_state(0))).step == 2


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # Orbax drops coroutines when reading fails
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_values_that_changed_are_noticed_without_file_checksums(saved, capsys):
    shutil.rmtree(saved / "sums")
    other = saved.parent / "other"
    save(other, [2])
    shutil.rmtree(saved / "2" / "params")
    state = make_state(7)  # well-formed, but of another step
    with CheckpointWriter(other, CONFIG) as writer:
        write(writer, state, {}, None)
    shutil.copytree(other / "7" / "params", saved / "2" / "params")
    assert restore(saved, target(make_state(0))).step == 1
    assert "values of 'params' differ from what was saved" in capsys.readouterr().err


def test_steps_do_not_wait_for_checksums(tmp_path, monkeypatch):
    """A save returns although nobody has read the checkpoint before it again; the end waits."""
    may_read, threads = threading.Event(), []

    def slow(folder, sums):
        threads.append(threading.current_thread())
        assert may_read.wait(60)
        write_sums(folder, sums)

    monkeypatch.setattr(checkpointer, "write_sums", slow)
    with CheckpointWriter(tmp_path, CONFIG) as writer:
        write(writer, make_state(1), META, None)
        write(writer, make_state(2), META, None)
        assert not (tmp_path / "sums").exists()
        may_read.set()
    assert sorted(p.stem for p in (tmp_path / "sums").iterdir()) == ["1", "2"]
    assert threading.main_thread() not in threads
    assert len(threads) == 2


def test_a_checkpoint_that_is_deleted_while_it_is_read_has_no_checksums(tmp_path, monkeypatch):
    def deleted(folder, sums):
        if folder.name == "1":
            raise FileNotFoundError(folder / "params")
        write_sums(folder, sums)

    monkeypatch.setattr(checkpointer, "write_sums", deleted)
    save(tmp_path, [1, 2])
    assert [p.stem for p in (tmp_path / "sums").iterdir()] == ["2"]


def test_checksums_that_cannot_be_written_are_told(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpointer, "write_sums", full)
    with pytest.raises(UserError, match=r"cannot write a checkpoint .*full"):
        save(tmp_path, [1])


def test_the_clock_does_not_matter(tmp_path, monkeypatch):
    ticks, now = itertools.count(), time.time_ns()
    # Every look at the clock is a day before the last.
    monkeypatch.setattr(time, "time_ns", lambda: now - next(ticks) * 86_400 * 10**9)
    monkeypatch.setattr(time, "time", lambda: now / 1e9 - next(ticks) * 86_400)
    save(tmp_path, [1, 2, 3], [0.1, 0.9, 0.2], CheckpointConfig(every=1, keep_latest=1))
    save(tmp_path, [4], [0.3], CheckpointConfig(every=1, keep_latest=2))
    assert next(ticks) > 10
    assert list_steps(tmp_path) == [2, 3, 4]
    for age, step in enumerate([4, 3, 2]):
        os.utime(tmp_path / str(step), (age * 1e6, age * 1e6))
    assert restore(tmp_path, target(make_state(0))).step == 4


def test_a_folder_that_may_only_be_read_is_told_at_once(saved):
    with (
        unprivileged(saved),
        pytest.raises(UserError, match=r"folder cannot be written; .* step 2"),
    ):
        CheckpointWriter(saved, CONFIG)


@contextlib.contextmanager
def unprivileged(folder):
    """Make a folder read-only, and be somebody whom that stops."""
    root = os.geteuid() == 0
    before = [(path, path.stat().st_mode) for path in [folder, *folder.parents[:-2]]]
    for path, mode in before[1:]:
        path.chmod(mode | 0o055)
    folder.chmod(0o555)
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        for path, mode in before:
            path.chmod(mode)


def test_no_sound_checkpoint_at_all(saved, capsys):
    for step in (1, 2):
        damage(next((saved / str(step)).rglob("_METADATA")), "cut")
    with pytest.raises(UserError, match=r"no sound checkpoint in .* give another --run or remove"):
        restore(saved, target(make_state(0)))
    assert capsys.readouterr().err.count("is damaged") == 2


def test_a_half_written_checkpoint_is_not_one(saved, capsys):
    half = saved / "3.orbax-checkpoint-tmp"
    shutil.copytree(saved / "2", half)
    assert list_steps(saved) == [1, 2]
    save(saved, [3])
    assert restore(saved, target(make_state(0))).step == 3
    assert not half.exists()


def test_a_half_deleted_checkpoint_does_not_hinder(saved):
    for name in ("meta", "_CHECKPOINT_METADATA", "params"):
        path = saved / "1" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    save(saved, [3, 4])
    assert list_steps(saved)[-2:] == [3, 4]
    assert restore(saved, target(make_state(0))).step == 4


@pytest.mark.parametrize("when", ["save", "wait"])
def test_a_full_disk_is_a_clear_error(saved, monkeypatch, when):
    def full(*_, **__):
        raise RuntimeError("writing failed") from OSError(errno.ENOSPC, "No space left on device")

    writer = CheckpointWriter(saved, CONFIG)
    name = "save_checkpointables_async" if when == "save" else "wait"
    monkeypatch.setattr(writer._checkpointer, name, full)
    with pytest.raises(
        UserError, match=r"cannot write a checkpoint .*full.* is of step 2.* same command"
    ):
        write(writer, make_state(3), {}, None)


def test_causes_that_go_round_in_a_circle_are_searched_once():
    first, second = RuntimeError("first"), RuntimeError("second")
    first.__cause__, second.__cause__ = second, first
    assert storage_problem(first) is None
    second.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert "full" in (storage_problem(first) or "")


def test_other_errors_of_saving_are_not_disguised(saved, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("something else")

    writer = CheckpointWriter(saved, CONFIG)
    monkeypatch.setattr(writer._checkpointer, "wait", broken)
    with pytest.raises(RuntimeError, match="something else"):
        writer.wait()


def test_fingerprint_notices_every_bit_and_every_swap():
    tree = {
        "a": jnp.arange(24.0).reshape(2, 3, 4),
        "b": jnp.int32(3),
        "c": jnp.ones(5, jnp.bfloat16),
    }
    marks = {fingerprint(tree)}
    flipped = np.array(tree["a"])
    for index in np.ndindex(flipped.shape):
        changed = flipped.copy()
        changed.view(np.int32)[index] ^= 1 << 20
        marks.add(fingerprint(tree | {"a": jnp.array(changed)}))
    marks.add(fingerprint(tree | {"a": tree["a"][::-1]}))
    marks.add(
        fingerprint(
            tree | {"a": tree["a"].at[0, 0].set(tree["a"][0, 1]).at[0, 1].set(tree["a"][0, 0])}
        )
    )
    marks.add(fingerprint(tree | {"b": jnp.int32(4)}))
    marks.add(fingerprint({"z" if name == "a" else name: value for name, value in tree.items()}))
    assert len(marks) == 1 + 24 + 4


def test_fingerprint_does_not_depend_on_the_mesh():
    meshes = [MeshConfig(), MeshConfig(data=2, fsdp=4), MeshConfig(fsdp=8)]
    assert len({fingerprint(make_state(3, make_mesh(mesh)).params) for mesh in meshes}) == 1
