import dataclasses
import math
import re

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from natjax.train.config import MeshConfig
from natjax.train.errors import UserError
from natjax.train.sharding import leaf_spec, make_mesh, put_batch, request_devices
from natjax.train.trainer import build_trainer


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


def test_a_mesh_of_more_devices_than_there_are():
    with pytest.raises(UserError, match=r"at most the 8 devices here \(cpu\), got 4 \* 4 = 16"):
        make_mesh(MeshConfig(data=4, fsdp=4))


def test_asking_for_devices_too_late_changes_nothing():
    request_devices(MeshConfig(data=16))
    assert len(jax.devices()) == 8


def losses(config, mesh: MeshConfig, steps: int = 6):
    trainer = build_trainer(dataclasses.replace(config, mesh=mesh))
    state, out = trainer.compiled.init(), []
    for step in range(steps):
        batch = put_batch(trainer.train_data[step], trainer.compiled.batch)
        state, scalars = trainer.compiled.train(state, batch)
        out.append(float(scalars["loss"]))
    return trainer, state, out


@pytest.mark.oldest
def test_eight_devices_equal_one(config):
    config = dataclasses.replace(
        config, optimizer=dataclasses.replace(config.optimizer, warmup_steps=1)
    )
    _, _, expected = losses(config, MeshConfig())
    trainer, state, found = losses(config, MeshConfig(data=4, fsdp=2))
    np.testing.assert_allclose(found, expected, rtol=2e-4)
    check_parts(trainer, state)


def check_parts(trainer, state):
    """Large arrays, their moments and averages are split in two; the batch in eight."""
    split = 0
    for leaf in jax.tree.leaves(state):
        whole, part = leaf.size, math.prod(leaf.sharding.shard_shape(leaf.shape))
        assert part in (whole, whole // 2)
        split += part < whole
    big = [v for v in trainer.compiled.target.params.values() if v.size >= 1024]
    assert split == 4 * len(big) > 0  # parameters, two moments, average
    batch = put_batch(trainer.train_data[0], trainer.compiled.batch)
    assert batch["image"].sharding.shard_shape(batch["image"].shape)[0] == 2


@pytest.mark.oldest
def test_no_device_computes_the_whole_initial_state(config):
    trainer = build_trainer(dataclasses.replace(config, mesh=MeshConfig(data=1, fsdp=4)))
    text = trainer.compiled.init.lower().compile().as_text()
    assert not re.search("all-gather", text)
