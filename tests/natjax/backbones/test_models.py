"""Models as a whole: outputs, options, training mode, errors."""

import dataclasses

import draw
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_keys
from flax import nnx

import natjax
from natjax import NAT, Isotropic, IsotropicConfig, NATConfig
from natjax.create import model_config

TINY = {"dim": 8, "depths": (2, 1), "num_heads": (1, 2), "kernel_size": 3, "num_classes": 5}
FLAT = {"dim": 8, "depth": 2, "num_heads": 2, "kernel_size": 3, "num_classes": 5, "patch_size": 4}
DROPS = {"drop_path": 0.5, "dropout": 0.2, "attn_dropout": 0.2}


def _nat(config=(), **options):
    config = NATConfig(**TINY | dict(config))
    return draw.filled(lambda rngs: NAT(config, rngs=rngs, **options))


def _isotropic(config=(), **options):
    config = IsotropicConfig(**FLAT | dict(config))
    return draw.filled(lambda rngs: Isotropic(config, rngs=rngs, **options))


def _images(height=24, width=24):
    return draw.normal((2, height, width, 3))


def _logits(model, images):
    return jax.jit(model)(images)


@pytest.mark.parametrize("build", [_nat, _isotropic])
def test_gradients_reach_every_parameter(build):
    model = build({"output_norms": False} | ({"layer_scale": 1e-5} if build is _nat else {}))
    graph, params = nnx.split(model)

    def loss(params):
        logits = nnx.merge(graph, params)(_images())
        return -jnp.mean(jax.nn.log_softmax(logits)[:, 0])

    for name, value in torch_keys.flat_params(jax.jit(jax.grad(loss))(params)).items():
        assert jnp.all(jnp.isfinite(value)), name
        assert jnp.any(value != 0), name


@pytest.mark.oldest
def test_modules_hold_parameters_only():
    model = _nat(DROPS | {"layer_scale": 1e-5, "output_norms": True})
    variables = jax.tree.leaves(nnx.state(model), is_leaf=lambda x: isinstance(x, nnx.Variable))
    assert {type(v) for v in variables} == {nnx.Param}


def test_names_mirror_the_published_state_dicts():
    names = set(torch_keys.flat_params(_nat({"layer_scale": 1e-5})))
    for name in (
        "patch_embed.proj.0.kernel",
        "patch_embed.proj.1.bias",
        "patch_embed.norm.scale",
        "levels.0.blocks.1.attn.qkv.kernel",
        "levels.0.blocks.1.attn.rpb",
        "levels.0.blocks.0.gamma1",
        "levels.0.downsample.reduction.kernel",
        "levels.0.downsample.norm.scale",
        "levels.1.blocks.0.mlp.fc2.bias",
        "norm.bias",
        "head.kernel",
    ):
        assert name in names
    assert "layers.0.blocks.1.norm1.scale" in torch_keys.flat_params(_nat({"overlapping": False}))
    assert "layers.1.attn.proj.bias" in torch_keys.flat_params(_isotropic())


@pytest.mark.parametrize("size", [(24, 24), (13, 50), (1, 1)])
@pytest.mark.parametrize("overlapping", [True, False])
def test_any_image_size(size, overlapping):
    model = _nat({"overlapping": overlapping, "dilations": ((1, 2), (1,))})
    quarter, eighth = ([-(-n // k) for n in size] for k in (4, 8))
    maps = jax.eval_shape(lambda x: model.features(x), _images(*size))
    assert [x.shape for x in maps] == [(2, *quarter, 8), (2, *eighth, 16)]
    assert jax.eval_shape(lambda x: model(x), _images(*size)).shape == (2, 5)


def test_isotropic_models_keep_the_geometry_of_any_size():
    # 16 x 64 has as many patches as 32 x 32.
    model = _isotropic({"input_size": 32})
    (wide,) = jax.jit(model.features)(_images(16, 64))
    assert wide.shape == (2, 4, 16, 8)
    (left,) = jax.jit(model.features)(_images(16, 64)[:, :, :32])
    # Two blocks of 3 x 3 windows see 2 patches far, and a border a little further.
    np.testing.assert_allclose(wide[:, :, :4], left[:, :, :4], atol=1e-5)


def test_global_attention_needs_its_map_size():
    model = _isotropic({"kernel_size": None, "input_size": 24})
    assert _logits(model, _images(24, 21)).shape == (2, 5)
    with pytest.raises(ValueError, match=r"map of 6 x 6 patches of 4 .*got \(7, 6\) patches"):
        model(_images(28, 24))


def test_features_with_output_norms():
    model = _nat({"output_norms": True, "num_classes": 0})
    assert model.norm is None
    assert model.head is None
    maps, outputs = jax.jit(lambda x: (model.maps(x), model.features(x)))(_images())
    for norm, raw, output in zip((model.norm0, model.norm1), maps, outputs, strict=True):
        np.testing.assert_allclose(output, norm(raw), atol=1e-5)
        assert not np.allclose(output, raw, atol=0.1)
    with pytest.raises(ValueError, match=r"need the final norm.*use features\(\)"):
        model(_images())


def test_without_classifier_a_call_returns_pooled_features():
    classifier, headless = _nat(), _nat({"num_classes": 0})
    assert headless.head is None
    for model, head in ((classifier, classifier.head), (headless, lambda x: x)):
        run = jax.jit(lambda x, model=model: (model.pooled(x), model(x)))
        pooled, out = run(_images())
        assert pooled.shape == (2, 16)
        np.testing.assert_allclose(head(pooled), out, atol=1e-6)


def test_rngs_decide_what_is_dropped():
    model, plain = _nat(DROPS), _nat()
    run = jax.jit(lambda x, key: model(x, nnx.Rngs(key)))
    first, again, other = (run(_images(), jax.random.key(seed)) for seed in (3, 3, 4))
    evaluated = _logits(plain, _images())
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other, atol=1e-3)
    assert not np.allclose(first, evaluated, atol=1e-3)
    np.testing.assert_allclose(_logits(model, _images()), evaluated, atol=1e-5)
    run = jax.jit(lambda x, key: plain(x, nnx.Rngs(key)))
    np.testing.assert_allclose(run(_images(), jax.random.key(3)), evaluated, atol=1e-5)


def test_only_streams_in_use_are_drawn_from():
    model = _nat({"drop_path": 0.5})
    run = nnx.jit(lambda rngs, x: model(x, rngs))
    rngs = nnx.Rngs(droppath=0)
    run(rngs, _images(8, 8))
    assert rngs.droppath.count[...] == 2  # of three blocks; the first has rate 0


def test_remat_changes_nothing_but_memory():
    def run(remat):
        graph, params = nnx.split(_nat({"depths": (1, 1), "drop_path": 0.5}, remat=remat))

        def loss(params, key):
            return jnp.sum(nnx.merge(graph, params)(_images(), nnx.Rngs(key)) ** 2)

        step, key = jax.value_and_grad(loss), jax.random.key(3)
        return str(jax.make_jaxpr(step)(params, key)), jax.jit(step)(params, key)

    (plain_code, plain), (remat_code, remat) = run(remat=False), run(remat=True)
    assert remat_code.count("remat") >= plain_code.count("remat") + 2  # a block each
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(remat), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.oldest
def test_low_precision_computation():
    x = _images()
    model = _nat(dtype=jnp.bfloat16)
    logits, maps = jax.jit(lambda x: (model(x), model.features(x)))(x)
    assert logits.dtype == jnp.float32
    assert {m.dtype.name for m in maps} == {"float32"}
    assert {p.dtype.name for p in torch_keys.flat_params(model).values()} == {"float32"}
    np.testing.assert_allclose(logits, _logits(_nat(), x), atol=5e-2)


@pytest.mark.oldest
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_low_precision_keeps_what_the_branches_add(dtype):
    """Under LayerScale 1e-5, a residual stream in bfloat16 keeps 1 of 10,000 entries' changes."""
    config = model_config("nat_small")
    first_level = {"depths": (2,), "num_heads": config.num_heads[:1], "dilations": ()}
    config = dataclasses.replace(config, num_classes=0, **first_level)
    assert config.layer_scale == 1e-5
    model = NAT(config, dtype=dtype, rngs=nnx.Rngs(0))

    def changed(images):
        (after,) = model.maps(images)
        return jnp.mean(after != model.patch_embed(images.astype(dtype)), dtype=jnp.float32)

    assert 0.9 < float(jax.jit(changed)(_images(64, 64))) < 0.97


def test_low_precision_is_for_products_and_attention():
    model = _nat({"layer_scale": 1e-5}, dtype=jnp.bfloat16)
    level, image = model.levels[0], _images()[..., :1]
    stream = jnp.concatenate([image] * 8, axis=-1)
    layers = [level.blocks[0].attn, level.blocks[0].mlp, level.blocks[0], level.downsample]
    kinds = [jax.eval_shape(lambda x, run=run: run(x), stream).dtype.name for run in layers]
    assert kinds == ["bfloat16", "bfloat16", "float32", "float32"]


def test_low_precision_parameters():
    model = _nat({"layer_scale": 1.0, "output_norms": True}, param_dtype=jnp.bfloat16)
    assert {p.dtype.name for p in torch_keys.flat_params(model).values()} == {"bfloat16"}
    assert _logits(model, _images()).dtype == jnp.float32


def test_create_model_overrides():
    def build():
        return natjax.create_model(
            "dinat_mini",
            num_classes=3,
            dilations=((1, 3, 1), (1, 4) * 2, (1, 2) * 3, (1,) * 5),
            kernel_size=5,
            drop_path=0.1,
            dropout=0.2,
            attn_dropout=0.3,
            in_channels=4,
            output_norms=True,
            dtype=jnp.bfloat16,
            remat=True,
            implementation="reference",
            rngs=nnx.Rngs(0),
        )

    model = nnx.eval_shape(build)
    block = model.levels[0].blocks[1]
    assert block.attn.dilation == (3, 3)
    assert block.attn.kernel_size == (5, 5)
    assert block.attn.implementation == "reference"
    assert (block.attn.proj_drop, block.attn.attn_drop, block.mlp.drop) == (0.2, 0.3, 0.2)
    assert model.levels[3].blocks[4].drop_path_rate == 0.1
    assert model.patch_embed.proj[0].kernel.shape == (3, 3, 4, 32)
    assert model.head.kernel.shape == (512, 3)
    assert model.norm3.scale.shape == (512,)
    assert model.remat


def test_create_model_makes_backbones_without_classifier():
    model = nnx.eval_shape(
        lambda: natjax.create_model("nat_mini", output_norms=True, rngs=nnx.Rngs(0))
    )
    names = set(torch_keys.flat_params(model))
    assert {f"norm{i}.scale" for i in range(4)} <= names
    assert not {"norm.scale", "head.kernel"} & names


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("nat_tinny", {}, r"got 'nat_tinny'; did you mean nat_tiny"),
        ("resnet50", {}, r"one of the 26 classifiers; got 'resnet50'; natjax\.list_models\(\)"),
        ("upernet_nat_tiny", {}, r"a classifier; 'upernet_nat_tiny' is made by natjax.create_seg"),
        ("nat_micro", {"num_classes": -1}, r"num_classes must be an integer >= 0; got -1"),
        ("nat_micro", {"drop_path": 1.0}, r"drop_path must be a rate in \[0, 1\); got 1\.0"),
        ("nat_micro", {"dropout": -0.5}, r"dropout must be a rate in \[0, 1\); got -0\.5"),
        ("nat_micro", {"in_channels": 0}, r"in_channels must be an integer >= 1; got 0"),
        ("nat_micro", {"kernel_size": 2.5}, r"kernel_size must be an integer >= 1; got 2\.5"),
        ("nat_micro", {"dilations": ((1, 1),)}, r"dilations must hold 2 sequences .*\(\(1, 1\),\)"),
        (
            "nat_micro",
            {"dilations": ((1, 1), (1,))},
            r"dilations\[1\] must hold 4 integers .*\(1,\)",
        ),
        ("nat_micro", {"dilations": ((1, 0), (1,) * 4)}, r"dilations\[0\]\[1\] must be an .*got 0"),
        ("nat_micro", {"dilations": (1, 1)}, r"dilations\[0\] must hold 2 integers .*got 1"),
        ("vitrpb_small", {"dilations": (1, 2) * 6}, r"dilations must all be 1 for global"),
        ("nat_isotropic_small", {"dilations": (1,)}, r"dilations must hold 12 integers .*got \(1,"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_create_model_errors(name, options, message):
    with pytest.raises(ValueError, match=message):
        natjax.create_model(name, rngs=nnx.Rngs(0), **options)


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        (NATConfig, {"dim": 0}, r"dim must be an integer >= 1; got 0"),
        (NATConfig, {"dim": 9, "num_heads": (1, 1)}, r"dim must be even .*; got 9"),
        (NATConfig, {"depths": ()}, r"depths must hold integers \(one per level\); got \(\)"),
        (NATConfig, {"depths": 3}, r"depths must hold integers .*got 3"),
        (NATConfig, {"num_heads": (1,)}, r"num_heads must hold 2 integers .*got \(1,\)"),
        (
            NATConfig,
            {"num_heads": (3, 1)},
            r"channels must be a multiple of num_heads; got 8 and 3",
        ),
        (NATConfig, {"mlp_ratio": 0.0}, r"mlp_ratio must be positive; got 0\.0"),
        (IsotropicConfig, {"depth": True}, r"depth must be an integer >= 1; got True"),
        (
            IsotropicConfig,
            {"num_heads": 3},
            r"channels must be a multiple of num_heads; got 8 and 3",
        ),
        (IsotropicConfig, {"patch_size": "4"}, r"patch_size must be an integer >= 1; got '4'"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_config_errors(family, changes, message):
    fields = TINY if family is NATConfig else FLAT
    with pytest.raises(ValueError, match=message):
        family(**fields | changes)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((24, 24, 3), np.float32), r"images must have shape \[batch.*got \(24, 24, 3\)"),
        (np.zeros((1, 3, 24, 24), np.float32), r"images must have shape .*got \(1, 3, 24, 24\)"),
        (np.zeros((1, 0, 24, 3), np.float32), r"none of them 0; got \(1, 0, 24, 3\)"),
        (np.zeros((1, 24, 24, 3), np.uint8), r"images must be floats, normalised; got uint8"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_images(images, message):
    with pytest.raises(ValueError, match=message):
        _nat()(jnp.asarray(images))


@pytest.mark.usefixtures("unchecked")
def test_configs_take_lists():
    config = NATConfig(**TINY | {"depths": [2, 1], "dilations": [[1, 2], [1]]})
    assert config == NATConfig(**TINY | {"dilations": ((1, 2), (1,))})
    assert hash(config) is not None


@pytest.mark.parametrize("build", [_nat, _isotropic])
def test_train_and_eval_are_honoured(build):
    """Also in a module around the model, and for `nnx.view`."""
    model = build({"drop_path": 0.5, "dropout": 0.2})
    around = nnx.Sequential(model)
    run = jax.jit(lambda model, x, key: model(x, nnx.Rngs(key)))
    dropped, evaluated = run(model, _images(8, 8), jax.random.key(3)), model(_images(8, 8))
    around.eval()
    np.testing.assert_allclose(run(model, _images(8, 8), jax.random.key(3)), evaluated, atol=1e-5)
    around.train()
    np.testing.assert_array_equal(run(model, _images(8, 8), jax.random.key(3)), dropped)
    with pytest.raises(ValueError, match=r"rngs must be given .* drop_path=0\.5 and dropout=0\.2"):
        model(_images(8, 8))
    view = nnx.view(model, deterministic=True)
    np.testing.assert_allclose(view(_images(8, 8)), evaluated, atol=1e-5)


def test_train_asks_nothing_of_a_model_without_dropout():
    model = _nat()
    expected = model(_images(8, 8))
    model.train()
    np.testing.assert_array_equal(model(_images(8, 8)), expected)


def test_train_and_eval_of_single_modules():
    attention = natjax.NeighborhoodAttention1D(8, 2, 3, proj_drop=0.5, rngs=nnx.Rngs(0))
    attention.train()
    with pytest.raises(ValueError, match=r"to draw what proj_drop=0\.5 drop"):
        attention(jnp.ones((1, 5, 8)))
    attention.eval()
    x = draw.normal((1, 5, 8))
    np.testing.assert_array_equal(attention(x, nnx.Rngs(0)), attention(x))


@pytest.mark.parametrize("build", [_nat, _isotropic])
def test_windows_change_with_their_config(build):
    model = build()
    flat = build is _isotropic
    dilations = (1, 2) if flat else ((1, 2), (3,))
    changed = model.with_dilations(dilations)
    assert changed.config.dilations == dilations
    assert [b.attn.dilation for b in changed.blocks()][:2] == [(1, 1), (2, 2)]
    assert model.config.dilations != dilations
    assert {b.attn.dilation for b in model.blocks()} == {(1, 1)}
    fresh = build({"dilations": dilations})
    np.testing.assert_array_equal(_logits(changed, _images()), _logits(fresh, _images()))
    wide = model.with_kernel_size(5)
    assert (wide.config.kernel_size, wide.blocks()[0].attn.kernel_size) == (5, (5, 5))
    assert wide.blocks()[0].attn.rpb.shape[1:] == (9, 9)
    assert model.blocks()[0].attn.rpb.shape[1:] == (5, 5)
    assert _logits(wide, _images()).shape == (2, 5)
    with pytest.raises(ValueError, match=r"dilations.* must hold"):
        model.with_dilations((1,) * 7 if flat else ((1,) * 7, (1,)))


@pytest.mark.parametrize("name", ["dilation", "kernel_size"])
def test_a_window_does_not_change_behind_the_config(name):
    block = _nat().blocks()[0]
    with pytest.raises(AttributeError, match=rf"{name} is fixed at \(.*got 2; model\.with_{name}"):
        setattr(block.attn, name, 2)


def test_blocks_and_features_of_all_families():
    for model, count in ((_nat(), 3), (_nat({"overlapping": False}), 3), (_isotropic(), 2)):
        assert len(model.blocks()) == count
        maps = jax.eval_shape(lambda x, model=model: model.features(x), _images(24, 20))
        for info, x in zip(model.feature_info, maps, strict=True):
            sizes = [-(-n // info.reduction) for n in (24, 20)]
            assert x.shape == (2, *sizes, info.channels)
        assert model.num_features == maps[-1].shape[-1]


def test_features_of_some_levels():
    fields = {"output_norms": True, "num_classes": 0}
    every = _nat(fields)
    model = _nat(fields | {"features_only": True, "out_indices": (-1,)})
    assert [info.level for info in model.feature_info] == [1]
    assert not hasattr(model, "norm0")
    (found,) = jax.jit(model)(_images())
    # Drawn by path, and norm1 is the last parameter but norm0 of the other.
    graph, _ = nnx.split(model)
    values = {k: v for k, v in nnx.to_flat_state(nnx.state(every)) if k[0] != "norm0"}
    same = nnx.merge(graph, nnx.from_flat_state(values))
    expected = jax.jit(every.features)(_images())[1]
    np.testing.assert_allclose(jax.jit(same)(_images())[0], expected, atol=1e-5)
    assert found.shape == (2, 3, 3, 16)
