"""What classification makes of its configuration, and of what others bring."""

import dataclasses

import pytest
from flax import nnx

import natjax
from natjax.train.cluster.processes import Host
from natjax.train.config.settings import ModelConfig
from natjax.train.engine.evaluate import evaluate
from natjax.train.engine.network import split_network
from natjax.train.engine.sharding import put_batch
from natjax.train.engine.trainer import build_trainer
from natjax.train.errors import UserError
from natjax.train.tasks.classification.config import ClassificationConfig, ImagesConfig
from natjax.train.tasks.classification.datasets import registry
from natjax.train.tasks.classification.datasets.digits import get_spec as digits_spec
from natjax.train.tasks.classification.datasets.registry import register_dataset
from natjax.train.tasks.classification.task import Classification


def test_flops_are_those_of_the_model_with_its_own_classes():
    data = ImagesConfig(name="digits", image_size=224)
    config = ClassificationConfig(model=ModelConfig(name="nat_tiny"), data=data)
    published = natjax.model_summary("nat_tiny").flops
    # Ten classes instead of 1000, and one channel instead of three in the first convolution.
    saved = 990 * 512 + 2 * 9 * 32 * 112 * 112
    assert Classification(config).example_flops() == published - saved


class Own(nnx.Module):
    """A model of one's own: a layer and batch normalisation."""

    def __init__(self):
        self.norm = nnx.BatchNorm(32 * 32, rngs=nnx.Rngs(0))
        self.head = nnx.Linear(32 * 32, 10, rngs=nnx.Rngs(0))

    def __call__(self, images, rngs=None):
        return self.head(self.norm(images.reshape(len(images), -1)))


def test_a_model_of_ones_own_learns(config):
    task = Classification(config, network=split_network(Own))
    trainer = build_trainer(task)
    state, batches = trainer.compiled.init(), task.train_batches(0, Host())
    losses = []
    for _ in range(12):
        state, scalars = trainer.compiled.train(
            state, put_batch(next(batches), trainer.compiled.batch)
        )
        losses.append(float(scalars["loss"]))
    assert losses[-1] < losses[0]
    assert float(abs(state.statistics["norm.mean"]).max()) > 0
    assert task.example_flops() is None
    scores = evaluate(task, trainer.compiled, state.weights(), task.eval_batches(Host()))
    assert scores["ema"].values["images"] == 360


def test_a_data_set_of_ones_own(config):
    register_dataset("own", lambda data: dataclasses.replace(digits_spec(data), name="own"))
    try:
        task = Classification(
            dataclasses.replace(config, data=dataclasses.replace(config.data, name="own"))
        )
        assert task.spec.name == "own"
        assert task.train_size() == 1437
        with pytest.raises(UserError, match="there is a data set 'own' already"):
            register_dataset("own", digits_spec)
    finally:
        del registry._REGISTERED["own"]


def test_bias_tables_are_decayed_where_the_configuration_says_so(config):
    for tables in (False, True):
        optimizer = dataclasses.replace(config.optimizer, decay_bias_tables=tables)
        task = Classification(dataclasses.replace(config, optimizer=optimizer))
        decays = {
            name: task.parameter_group(name, shape).weight_decay
            for name, shape in (("a.rpb", (2, 3, 3)), ("a.kernel", (2, 2)), ("a.bias", (2,)))
        }
        assert decays == {"a.rpb": float(tables), "a.kernel": 1.0, "a.bias": 0.0}
