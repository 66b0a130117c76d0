import dataclasses
import math
import types

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec, use_abstract_mesh

from natjax.backbones.nat import NAT, NATConfig
from natjax.train.checkpoint.checkpointer import CheckpointWriter, restore
from natjax.train.cluster.processes import Host
from natjax.train.config.settings import CheckpointConfig, MeshConfig
from natjax.train.engine.compile import compile_training
from natjax.train.engine.network import split_network
from natjax.train.engine.sharding import (
    check_batch_size,
    device_grid,
    keep_rows,
    keep_whole,
    leaf_spec,
    make_mesh,
    put_batch,
    request_devices,
    state_sharding,
)
from natjax.train.engine.state import state_of
from natjax.train.engine.step import set_up_step
from natjax.train.engine.trainer import build_trainer
from natjax.train.errors import UserError
from natjax.train.tasks.classification.task import Classification


@pytest.mark.parametrize(
    ("shape", "fsdp", "spec"),
    [
        ((), 2, PartitionSpec()),
        ((64,), 2, PartitionSpec()),
        ((4096,), 2, PartitionSpec("fsdp")),
        ((32, 96), 1, PartitionSpec()),
        ((32, 96), 2, PartitionSpec(None, "fsdp")),
        ((96, 32), 2, PartitionSpec("fsdp", None)),
        ((3, 3, 16, 31), 8, PartitionSpec(None, None, "fsdp", None)),
        ((31, 97), 2, PartitionSpec()),
    ],
)
def test_the_longest_axis_that_divides_is_split(shape, fsdp, spec):
    assert leaf_spec(shape, fsdp) == spec


def test_position_biases_stay_whole():
    mesh = make_mesh(MeshConfig(fsdp=4))
    params = {"attn.rpb": (16, 13, 13), "attn.qkv.kernel": (64, 192)}
    state = {"mu": {name: jax.ShapeDtypeStruct(x, "float32") for name, x in params.items()}}
    specs = {name: x.spec for name, x in state_sharding(state, mesh)["mu"].items()}
    assert specs == {"attn.rpb": PartitionSpec(), "attn.qkv.kernel": PartitionSpec(None, "fsdp")}


def test_arrays_are_held_whole_or_by_rows_where_there_is_a_mesh():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2))
    split = jax.device_put(np.ones((8, 4), np.float32), NamedSharding(mesh, PartitionSpec("fsdp")))
    for hold, shape in ((keep_whole, (8, 4)), (keep_rows, (2, 4))):
        assert hold({"x": split})["x"] is split  # nothing is known of a mesh
        with use_abstract_mesh(mesh.abstract_mesh):
            held = jax.jit(lambda x, hold=hold: hold({"x": x})["x"])(split)
        assert {shard.data.shape for shard in held.addressable_shards} == {shape}


def test_a_mesh_of_more_devices_than_there_are():
    with pytest.raises(UserError, match=r"at most the 8 devices here \(cpu\), got 4 \* 4 = 16"):
        make_mesh(MeshConfig(data=4, fsdp=4))


def test_asking_for_devices_too_late_changes_nothing():
    request_devices(MeshConfig(data=16))
    assert len(jax.devices()) == 8


def test_all_devices_are_taken_but_on_a_cpu_only_those_asked_for(monkeypatch):
    assert make_mesh(MeshConfig()).size == 1
    assert dict(make_mesh(MeshConfig(fsdp=4)).shape) == {"data": 1, "fsdp": 4}
    monkeypatch.setattr(jax, "process_count", lambda: 8)  # a CPU of several processes is no toy
    assert dict(make_mesh(MeshConfig()).shape) == {"data": 8, "fsdp": 1}
    assert dict(make_mesh(MeshConfig(fsdp=4)).shape) == {"data": 2, "fsdp": 4}
    with pytest.raises(UserError, match=r"mesh.fsdp must divide the 8 devices here .*, got 3"):
        make_mesh(MeshConfig(fsdp=3))
    with pytest.raises(UserError, match=r"must be all 8 devices of the 8 processes, got 2 \* 2"):
        make_mesh(MeshConfig(data=2, fsdp=2))


def pod(hosts: int, chips: int) -> list:
    """Devices of several hosts, in the order of a network that does not care for hosts."""
    return [
        types.SimpleNamespace(process_index=host, id=host * chips + chip, platform="tpu")
        for chip in range(chips)
        for host in range(hosts)
    ]


def test_hosts_have_consecutive_parts_of_the_batch_and_whole_groups(monkeypatch):
    devices = pod(2, 4)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    hosts = [[d.process_index for d in row] for row in device_grid(MeshConfig(fsdp=2), devices)]
    assert hosts == [[0, 0], [0, 0], [1, 1], [1, 1]]
    with pytest.raises(UserError, match=r"as many devices, got \[\(0, 4\), \(1, 3\)\]"):
        device_grid(MeshConfig(), devices[:-1])


def test_a_batch_that_the_devices_cannot_share(config):
    mesh = make_mesh(MeshConfig(data=8))
    check_batch_size(16, mesh)
    with pytest.raises(UserError, match=r"a multiple of the 8 devices .*, got 12"):
        check_batch_size(12, mesh)
    with pytest.raises(UserError, match=r"the 8 devices .* times accumulate=4, got 16"):
        check_batch_size(16, mesh, 4)


def steps(trainer, state, first: int, last: int):
    """The state after steps `first` to `last`, and their losses."""
    out = []
    batches = trainer.task.train_batches(first, Host())
    for _ in range(first, last):
        batch = put_batch(next(batches), trainer.compiled.batch)
        state, scalars = trainer.compiled.train(state, batch)
        out.append(float(scalars["loss"]))
    return state, out


def first_batch(trainer):
    return next(trainer.task.train_batches(0, Host()))


def on_mesh(config, mesh: MeshConfig, **model):
    changed = dataclasses.replace(config.model, **model)
    warm = dataclasses.replace(config.optimizer, warmup_steps=1)
    changed = dataclasses.replace(config, mesh=mesh, model=changed, optimizer=warm)
    return build_trainer(Classification(changed))


@pytest.mark.oldest
def test_eight_devices_equal_one_and_go_on_from_each_others_checkpoints(config, tmp_path):
    one = on_mesh(config, MeshConfig())
    _, expected = steps(one, one.compiled.init(), 0, 6)
    both = on_mesh(config, MeshConfig(data=2, fsdp=4), remat=True)  # which changes no result
    state, found = steps(both, both.compiled.init(), 0, 3)
    np.testing.assert_allclose(found, expected[:3], rtol=2e-4)
    check_parts(both, state)
    with CheckpointWriter(tmp_path, CheckpointConfig()) as writer:
        writer.save(3, state.items(), {}, None)
    for trainer in (both, on_mesh(config, MeshConfig(data=8)), one):
        restored = restore(tmp_path, trainer.compiled.target.items())
        state, found = steps(trainer, state_of(restored.items), 3, 6)
        np.testing.assert_allclose(found, expected[3:], rtol=2e-4)
        assert int(state.step) == 6


def check_parts(trainer, state):
    """Large arrays, their moments and averages are split in four; the batch in eight."""
    split = 0
    for leaf in jax.tree.leaves(state):
        whole, part = leaf.size, math.prod(leaf.sharding.shard_shape(leaf.shape))
        assert part in (whole, whole // 4)
        split += part < whole
    big = [v for v in trainer.compiled.target.params.values() if v.size >= 1024]
    assert split == 4 * len(big) > 0  # parameters, two moments, average
    batch = put_batch(first_batch(trainer), trainer.compiled.batch)
    assert batch["image"].sharding.shard_shape(batch["image"].shape)[0] == 2


@pytest.mark.oldest
def test_no_device_holds_the_whole_initial_state(config):
    wide = NATConfig(dim=128, depths=(1, 1), num_heads=(4, 8), kernel_size=3, num_classes=10)
    network = split_network(lambda: NAT(wide, rngs=nnx.Rngs(0)))
    setup = set_up_step(Classification(config, network=network), 100, 10.0)
    functions = compile_training(setup, make_mesh(MeshConfig(fsdp=8)))
    compiled = functions.init.lower().compile()
    assert "all-gather" not in compiled.as_text()
    whole = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(functions.target))
    usage = compiled.memory_analysis()
    assert usage.output_size_in_bytes < whole * 0.14  # an eighth, and what is too small to split
    assert usage.output_size_in_bytes + usage.temp_size_in_bytes < whole * 0.5


def test_a_step_changes_the_state_in_place(config):
    trainer = on_mesh(config, MeshConfig(data=1, fsdp=2))
    target, batch = trainer.compiled.target, first_batch(trainer)
    compiled = trainer.compiled.train.lower(target, put_batch(batch, trainer.compiled.batch))
    parts = sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(target)
    )
    assert compiled.compile().memory_analysis().alias_size_in_bytes == parts
