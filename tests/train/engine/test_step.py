"""The step of any task: weights of losses, parts of batches, statistics, groups, averages."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from natjax.train.config.settings import MeshConfig, OptimizerConfig, RunConfig
from natjax.train.engine.compile import compile_training
from natjax.train.engine.finite import skip_bad_updates
from natjax.train.engine.network import split_network
from natjax.train.engine.sharding import make_mesh, put_batch
from natjax.train.engine.state import state_of
from natjax.train.engine.step import batch_gradient, set_up_step, train_step, update_ema
from natjax.train.engine.task import Loss, Task


class Model(nnx.Module):
    """A layer, batch normalisation and a layer."""

    def __init__(self, rngs):
        self.stem = nnx.Linear(4, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, momentum=0.5, rngs=rngs)
        self.head = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x, rngs=None):
        return self.head(jax.nn.relu(self.norm(self.stem(x))))


class Pixels(Task[RunConfig]):
    """A loss over the points of an example that count, of which each has another number."""

    network = split_network(lambda: Model(nnx.Rngs(0)))
    frozen = False

    def init(self):
        return self.network.init()

    def loss(self, params, statistics, batch, rngs):
        logits, statistics = self.network.apply(params, statistics, batch["x"], train=True)
        logits = logits[:, None, :] + 0 * batch["target"].astype(jnp.float32)[..., None]
        log_p = jax.nn.log_softmax(logits)
        target = jnp.maximum(batch["target"], 0)[..., None]
        losses = -jnp.take_along_axis(log_p, target, axis=-1)[..., 0]
        counts = batch["target"] >= 0
        scalars = {"points": counts.sum().astype(jnp.float32), "share": (counts.sum(), 40)}
        return Loss(jnp.where(counts, losses, 0).sum(), counts.sum(), statistics, scalars)

    def predict(self, params, statistics, batch):
        return {"logits": self.network.apply(params, statistics, batch["x"])[0]}

    def parameter_group(self, name, shape):
        group = super().parameter_group(name, shape)
        return dataclasses.replace(group, frozen=self.frozen and name.startswith("stem."))

    def train_size(self):
        return 100

    def train_batches(self, start, host):
        raise NotImplementedError

    eval_batches = evaluator = None


class Frozen(Pixels):
    frozen = True


RNG = np.random.default_rng(0)
TARGET = RNG.integers(0, 3, (8, 5)).astype(np.int32)
TARGET[RNG.random((8, 5)) < 0.5] = -1
TARGET[1::2, 1:] = -1  # every other example counts little, and so every other part
BATCH = {"x": RNG.normal(size=(8, 4)).astype(np.float32), "target": TARGET}


def setup(kind=Pixels, **settings):
    # The gradient of the bias before the normalisation is 0 up to rounding, which Adam must not
    # take for a direction.
    optimizer = OptimizerConfig(warmup_steps=0, schedule="constant", learning_rate=0.1, eps=1e-2)
    config = RunConfig(optimizer=optimizer, batch_size=8, **{"ema_decay": 0.5} | settings)
    return set_up_step(kind(config), 10)


def gradient(this, batch=None):
    state = this.init()
    batch = {name: jnp.asarray(rows) for name, rows in (batch or BATCH).items()}
    return batch_gradient(this, state.params, state.statistics, jnp.int32(0), batch)


class NoNorm(Pixels):
    """Without batch normalisation, parts add up to the whole."""

    def loss(self, params, statistics, batch, rngs):
        found = super().loss(params, statistics, batch, rngs)
        hidden = jax.nn.relu(batch["x"] @ params["stem.kernel"])
        log_p = jax.nn.log_softmax(hidden @ params["head.kernel"])[:, None, :]
        picked = jax.nn.one_hot(batch["target"], 3) * log_p  # zeros where the target is -1
        return found._replace(sum=-picked.sum())


def test_parts_count_by_their_weights():
    """A mean of the means of parts would be another number."""
    whole, parts = gradient(setup(NoNorm)), gradient(setup(NoNorm, accumulate=2))
    for name, values in whole.gradient.items():
        np.testing.assert_allclose(parts.gradient[name], values, atol=1e-6)
    assert float(parts.scalars["loss"]) == pytest.approx(float(whole.scalars["loss"]), rel=1e-6)
    halves = [{name: x[i::2] for name, x in BATCH.items()} for i in range(2)]
    means = [float(gradient(setup(NoNorm), half).scalars["loss"]) for half in halves]
    assert np.mean(means) != pytest.approx(float(whole.scalars["loss"]), rel=1e-3)


def test_scalars_are_sums_by_weights_or_means_over_parts():
    points = (TARGET >= 0).sum()
    whole, parts = gradient(setup()), gradient(setup(accumulate=2))
    assert float(whole.scalars["points"]) == points
    assert float(parts.scalars["points"]) == points / 2
    assert float(whole.scalars["share"]) == pytest.approx(points / 40)
    assert float(parts.scalars["share"]) == pytest.approx(points / 80)


def test_a_batch_in_which_nothing_counts_teaches_nothing():
    empty = BATCH | {"target": np.full_like(TARGET, -1)}
    for accumulate in (1, 2):
        found = gradient(setup(accumulate=accumulate), empty)
        assert float(found.scalars["loss"]) == 0
        assert all((np.asarray(x) == 0).all() for x in found.gradient.values())


def test_statistics_are_those_of_the_batch_and_then_of_each_part():
    this, parts = setup(), setup(accumulate=2)
    start = this.init()
    assert set(start.statistics) == {"norm.mean", "norm.var"}
    params = {name: np.asarray(x) for name, x in start.params.items()}
    hidden = BATCH["x"] @ params["stem.kernel"] + params["stem.bias"]
    found = gradient(this).statistics
    np.testing.assert_allclose(found["norm.mean"], 0.5 * hidden.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(found["norm.var"], 0.5 + 0.5 * hidden.var(axis=0), atol=1e-6)
    expected = 0.5 * (0.5 * hidden[0::2].mean(axis=0)) + 0.5 * hidden[1::2].mean(axis=0)
    np.testing.assert_allclose(gradient(parts).statistics["norm.mean"], expected, atol=1e-6)


def run(this, mesh, count=3, step=train_step):
    functions = compile_training(this, make_mesh(mesh), step)
    state = functions.init()
    for _ in range(count):
        state, scalars = functions.train(state, put_batch(BATCH, functions.batch))
    rows = put_batch(BATCH, functions.batch)
    predicted = [functions.pictured(*weights, rows) for weights in state.weights().values()]
    return jax.device_get((state, scalars, predicted))


@pytest.mark.oldest
@pytest.mark.parametrize("mesh", [MeshConfig(data=8), MeshConfig(data=2, fsdp=4)])
def test_statistics_are_those_of_the_whole_batch_on_any_mesh(mesh):
    one, many = run(setup(), MeshConfig()), run(setup(), mesh)
    for left, right in zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True):
        np.testing.assert_allclose(left, right, atol=2e-5)


def test_evaluation_uses_the_statistics_and_leaves_them():
    state, _, (raw, averaged) = run(setup(), MeshConfig())
    params, statistics = state.weights()["raw"]
    hidden = BATCH["x"] @ params["stem.kernel"] + params["stem.bias"]
    scaled = (hidden - statistics["norm.mean"]) / np.sqrt(statistics["norm.var"] + 1e-5)
    hidden = np.maximum(scaled * params["norm.scale"] + params["norm.bias"], 0)
    expected = hidden @ params["head.kernel"] + params["head.bias"]
    np.testing.assert_allclose(raw["logits"], expected, atol=1e-4)
    assert not np.allclose(raw["logits"], averaged["logits"])


def test_averages_have_the_statistics_too():
    state, *_ = run(setup(), MeshConfig())
    assert set(state.ema) == set(state.params) | set(state.statistics)
    assert not np.allclose(state.ema["norm.mean"], state.statistics["norm.mean"])
    assert set(state.items()) == {"params", "statistics", "opt", "ema", "step"}
    assert state_of(state.items()).statistics == state.statistics


def test_a_skipped_update_leaves_the_statistics():
    bad = BATCH | {"x": np.full_like(BATCH["x"], np.nan)}
    this = setup()
    before = this.init()
    after, scalars = skip_bad_updates(train_step)(this, before, jax.tree.map(jnp.asarray, bad))
    assert float(scalars["skipped"]) == 1
    jax.tree.map(np.testing.assert_array_equal, after.statistics, before.statistics)


def test_frozen_parameters_stay_and_have_no_optimizer_state():
    this = setup(Frozen)
    before, (after, *_) = this.init(), run(this, MeshConfig())
    for name, values in before.params.items():
        assert np.array_equal(values, after.params[name]) == name.startswith("stem.")
    assert not any(
        "stem" in jax.tree_util.keystr(path)
        for path, _ in jax.tree_util.tree_leaves_with_path(after.opt)
    )
    assert set(gradient(this).gradient) == set(before.params) - {"stem.kernel", "stem.bias"}


def test_a_model_with_random_state_of_its_own_is_refused():
    with pytest.raises(ValueError, match=r"keep no random state, got .*: hand rngs to its call"):
        split_network(lambda: nnx.Dropout(0.5, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize(("step", "keep"), [(0, 0.1), (10, 0.55), (10**6, 0.9)])
def test_average_forgets_the_start_and_then_decays(step, keep):
    ema = update_ema({"a": jnp.ones(2)}, {"a": jnp.zeros(2)}, jnp.int32(step), 0.9)
    np.testing.assert_allclose(ema["a"], keep, rtol=1e-5)


def test_without_warm_up_the_average_decays_from_the_start():
    ema, params = {"a": jnp.ones(2)}, {"a": jnp.zeros(2)}
    found = update_ema(ema, params, jnp.int32(0), 0.9998, warmup=False)
    np.testing.assert_allclose(found["a"], 0.9998)


def test_of_what_is_no_float_the_average_has_the_newest():
    found = update_ema({"n": jnp.int32(1)}, {"n": jnp.int32(7)}, jnp.int32(3), 0.9)
    assert int(found["n"]) == 7
