"""Learning from weights: layers at rates of their own, a frozen backbone, the preset."""

import dataclasses
import functools

import draw
import jax
import jax.numpy as jnp
import numpy as np
import pico
import pytest
from PIL import Image

import natjax
from natjax.cli import main
from natjax.train.config.settings import ModelConfig
from natjax.train.engine.backbone import block_counts, layer_of
from natjax.train.engine.step import batch_gradient, set_up_step, train_step
from natjax.train.errors import UserError
from natjax.train.tasks.classification.task import Classification


def task(config, **model):
    return Classification(
        dataclasses.replace(
            config, model=dataclasses.replace(config.model, **model), init="weights.safetensors"
        )
    )


def batch(seed=0):
    random = np.random.default_rng(seed)
    image = random.integers(0, 256, (16, 32, 32, 1), np.uint8)
    return {"image": image, "label": np.arange(16, dtype=np.int32) % 10}


@pytest.mark.parametrize(
    ("model", "name", "layer"),
    [
        ("nat_mini", "patch_embed.proj.0.kernel", 0),
        ("nat_mini", "levels.0.blocks.0.norm1.scale", 1),
        ("nat_mini", "levels.0.downsample.reduction.kernel", 3),
        ("nat_mini", "levels.3.blocks.4.mlp.fc2.bias", 18),
        ("nat_mini", "norm.scale", None),
        ("nat_mini", "head.kernel", None),
        ("dinat_s_tiny", "layers.1.blocks.0.attn.rpb", 3),
        ("vitrpb_small", "layers.11.attn.qkv.kernel", 12),
    ],
)
def test_layers_count_from_the_tokenizer(model, name, layer):
    blocks = block_counts(natjax.model_config(model))
    assert layer_of(name, blocks) == layer
    assert layer_of(f"backbone.{name}", blocks, "backbone.") == layer
    assert layer_of(name, blocks, "backbone.") is None


def test_every_layer_has_its_rate(config):
    groups = set_up_step(task(config, layer_decay=0.5), 10).groups
    rates = {name: group.learning_rate for name, group in groups.items()}
    assert rates["head.kernel"] == rates["norm.scale"] == 1
    blocks = sum(natjax.model_config(pico.NAME).depths)
    assert rates["patch_embed.norm.bias"] == 0.5 ** (blocks + 1)
    assert {rates[name] for name in rates if "blocks" in name} == {
        0.5 ** (1 + index) for index in range(blocks)
    }


def test_a_frozen_backbone_stays_as_it_is(config):
    setup = set_up_step(task(config, frozen=True), 10)
    before = setup.init()
    step = jax.jit(functools.partial(train_step, setup))
    state, _ = step(before, batch())
    state, _ = step(state, batch(1))
    for name, value in before.params.items():
        learns = name.startswith(("norm.", "head."))
        assert np.array_equal(value, state.params[name]) != learns, name
    kept = {jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(state.opt)}
    assert not [name for name in kept if "levels" in name or "patch_embed" in name]


def test_a_frozen_backbone_needs_weights(config):
    with pytest.raises(UserError, match=r"model.frozen must be False where --init gives no"):
        dataclasses.replace(config, model=ModelConfig(name=pico.NAME, frozen=True))


@pytest.mark.parametrize("gradients", ["float32", "bfloat16"])
def test_gradients_are_made_in_the_type_that_is_asked_for(config, gradients):
    setup = set_up_step(task(config, dtype="bfloat16", gradients=gradients), 10)
    state = jax.jit(setup.init)()
    derive = jax.jit(functools.partial(batch_gradient, setup))
    found = derive(state.params, state.statistics, state.step, batch()).gradient
    for name, value in found.items():
        assert value.dtype == jnp.float32
        if name.endswith("fc1.kernel"):
            is_rounded = np.array_equal(value, value.astype(jnp.bfloat16).astype(jnp.float32))
            assert is_rounded == (gradients == "bfloat16")


@pytest.fixture
def photos(tmp_path):
    """A folder of images of two classes."""
    random = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 2)):
        for name in ("cat", "dog"):
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(0, 256, (40, 36, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return tmp_path / "photos"


@pytest.mark.usefixtures("no_pictures")
def test_the_preset_fine_tunes_on_any_folder(photos, tmp_path, capsys):
    build = functools.partial(natjax.create_model, pico.NAME, num_classes=7)
    natjax.save_weights(draw.filled(lambda rngs: build(rngs=rngs)), tmp_path / "x.safetensors")
    words = ["--data.dir", photos, "--init", tmp_path / "x.safetensors", "--run", tmp_path / "run"]
    small = "--model.name pico --model.dtype float32 --data.image-size 32 --data.workers 0"
    flags = [*map(str, words), *small.replace("pico", pico.NAME).split()]
    assert main(["train", "finetune", *flags, "--batch-size", "4", "--steps", "5"]) == 0
    out = capsys.readouterr().out
    assert "Starting from" in out
    assert "to fit 5 steps: warm-up 3 -> 0 steps" in out
    assert "to suit the intervals given: log_every 20 -> 2" in out
