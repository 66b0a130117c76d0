"""Loading into models: from every source, all or nothing."""

import pathlib

import draw
import golden_models
import goldens
import hf_keys
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch_keys
from flax import nnx
from safetensors.numpy import save_file

import natjax
from natjax import NATConfig
from natjax.weights import MismatchError, WeightsError
from natjax.weights.formats import SourceFile
from natjax.weights.load import named_params
from natjax.weights.state_dict import find_state_dict
from natjax.weights.torchfile.writer import write_torch

OFFICIAL = golden_models.official("nat", "b")


def model(**options):
    """A model of the files' configuration whose parameters are all 7."""
    abstract = golden_models.abstract("nat", "b", **options)
    for param in named_params(abstract).values():
        param.set_value(jnp.full(param.shape, 7, param.dtype))
    return abstract


def values(model):
    return {name: np.asarray(param.get_value()) for name, param in named_params(model).items()}


def assert_equal(found, official):
    expected = torch_keys.to_ours(official)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


def write(path, arrays):
    if path.suffix == ".safetensors":
        save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, path)
    else:
        write_torch(path, arrays)
    return path


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("naming", "arrays"),
    [
        ("official", OFFICIAL),
        ("official", {f"module.{key}": array for key, array in OFFICIAL.items()}),
        ("hf", hf_keys.to_hf(OFFICIAL, "nat")),
        ("natjax", torch_keys.to_ours(OFFICIAL)),
    ],
    ids=["official", "parallel", "hf", "natjax"],
)
def test_every_naming_in_every_format(naming, arrays, suffix, tmp_path):
    target = model()
    report = natjax.load_weights(target, write(tmp_path / f"x{suffix}", arrays))
    assert_equal(values(target), OFFICIAL)
    assert report.naming == naming
    assert not report.skipped
    assert sum(len(mapped.theirs) for mapped in report.mapped) == len(arrays)


@pytest.mark.oldest
@pytest.mark.parametrize("name", ["bare", "legacy", "strided", "half", "bf16"])
def test_files_that_torch_wrote(name):
    path = _torch_file(f"nat_b_{name}.pth")
    target, rounded = model(), {"half": np.float16, "bf16": ml_dtypes.bfloat16}.get(name)
    natjax.load_weights(target, path)
    expected = OFFICIAL
    if rounded is not None:
        expected = {k: v.astype(rounded).astype(np.float32) for k, v in OFFICIAL.items()}
    assert_equal(values(target), expected)


def test_a_training_checkpoint_that_torch_wrote():
    path, target = _torch_file("nat_b_timm.pth.tar"), model()
    report = natjax.load_weights(target, path)
    assert report.container == "state_dict.module"
    assert "averaged weights (ema=True, --ema)" in str(report)
    assert_equal(values(target), OFFICIAL)
    report = natjax.load_weights(target, path, ema=True)
    assert not report.has_average
    assert_equal(values(target), {key: array / 2 for key, array in OFFICIAL.items()})


def _torch_file(name):
    for folder in (goldens.COMMITTED, goldens.FULL):
        if (folder / "pth" / name).exists():
            return folder / "pth" / name
    pytest.skip(f"{name}, which PyTorch wrote, is not here (shared/golden/pth)")


def memory_file(content, **options):
    return SourceFile(
        path=pathlib.Path("x.pth"), format="torch", content=content, metadata={}, **options
    )


def test_training_checkpoints_have_two_sets_of_weights():
    def content():
        half = {f"module.{key}": array / 2 for key, array in OFFICIAL.items()}
        return {"epoch": 3, "state_dict": dict(OFFICIAL), "state_dict_ema": half}

    state = find_state_dict(memory_file(content()))
    assert state.container == "state_dict"
    np.testing.assert_array_equal(state.arrays["head.bias"], OFFICIAL["head.bias"])
    state = find_state_dict(memory_file(content()), ema=True)
    assert state.container == "state_dict_ema.module"
    np.testing.assert_array_equal(state.arrays["head.bias"], OFFICIAL["head.bias"] / 2)


def test_averaged_weights_must_be_there(tmp_path):
    path = write(tmp_path / "x.pth", OFFICIAL)
    with pytest.raises(WeightsError, match=r"no averaged weights \(state_dict_ema or model_ema\)"):
        natjax.load_weights(model(), path, ema=True)


@pytest.mark.parametrize("container", ["state_dict", "model"])
def test_of_a_detector_the_backbone_alone_is_taken(container):
    backbone = golden_models.backbone("nat", "b")
    heads = {"neck.a.weight": np.ones(3), "roi_head.b": np.ones(2), "roi_head.c": np.ones(2)}
    content = {f"backbone.{key}": array for key, array in backbone.items()} | heads
    state = find_state_dict(memory_file({container: content, "meta": {"epoch": 3}}))
    assert state.arrays.keys() == backbone.keys()
    assert state.left_out == {"neck": 1, "roi_head": 2}


def test_report_says_what_of_a_detector_was_left_out(tmp_path):
    backbone = golden_models.backbone("nat", "b")
    arrays = {f"backbone.{key}": array for key, array in backbone.items()}
    path = write(tmp_path / "x.pth", arrays | {"decode_head.x": np.ones(1, np.float32)})
    target = model(output_norms=True)
    report = natjax.load_weights(target, path)
    assert_equal(values(target), backbone)
    assert "left out, outside the backbone: decode_head (1)" in str(report)
    assert "levels.*.blocks.*.attn.qkv.weight" in report.table()


def test_hugging_face_backbone(tmp_path):
    backbone = golden_models.backbone("nat", "b")
    arrays = {k.removeprefix("nat."): v for k, v in hf_keys.to_hf(backbone, "nat").items()}
    assert "hidden_states_norms.stage2.weight" in arrays
    target = model(output_norms=True)
    natjax.load_weights(target, write(tmp_path / "x.safetensors", arrays))
    assert_equal(values(target), backbone)


def broken():
    """The state dict with one fault of each kind."""
    arrays = dict(OFFICIAL)
    del arrays["norm.weight"], arrays["levels.0.blocks.0.norm1.bias"]
    arrays["extra.weight"] = np.ones(2, np.float32)
    arrays["head.bias"] = np.ones(3, np.float32)
    arrays["levels.0.blocks.0.attn.rpb"] = np.ones((1, 21, 21), np.float32)
    arrays["levels.0.blocks.0.norm2.weight"] = np.ones(16, np.int64)
    return arrays


def test_all_faults_are_told_at_once_and_nothing_is_loaded(tmp_path):
    target = model()
    with pytest.raises(MismatchError) as caught:
        natjax.load_weights(target, write(tmp_path / "x.pth", broken()))
    message = str(caught.value)
    for text in (
        "2 missing in the file, 1 unexpected in the file, 3 not of the model's shape",
        "norm.weight",
        "levels.0.blocks.0.norm1.bias",
        "extra.weight",
        "head.bias: float32[3] in the file, [10] in the model (drop_head=True",
        "attn.rpb: float32[1, 21, 21] in the file, [1, 13, 13] in the model (resize_rpb=True",
        "norm2.weight: int64[16] in the file, [16] of floats in the model",
    ):
        assert text in message
    assert caught.value.report.unexpected == ("extra.weight",)
    assert all((array == 7).all() for array in values(target).values())


def test_not_strict_loads_what_fits_and_lists_the_rest(tmp_path):
    target = model()
    report = natjax.load_weights(target, write(tmp_path / "x.pth", broken()), strict=False)
    assert len(report.skipped) == 6
    found, expected = values(target), torch_keys.to_ours(OFFICIAL)
    skipped = {"norm.scale", "head.bias", "levels.0.blocks.0.attn.rpb"}
    skipped |= {"levels.0.blocks.0.norm1.bias", "levels.0.blocks.0.norm2.scale"}
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], 7 if name in skipped else array)
    assert "skipped: missing: " in str(report)


def test_not_strict_still_needs_something_that_fits(tmp_path):
    arrays = {key: np.ones((1, 2, 3, 4, 5), np.float32) for key in OFFICIAL}
    with pytest.raises(MismatchError):
        natjax.load_weights(model(), write(tmp_path / "x.pth", arrays), strict=False)


def test_a_stranger_s_key_is_harmless_to_a_terminal(tmp_path):
    path = write(tmp_path / "x.pth", OFFICIAL | {"\x1b[2J": np.ones(1, np.float32)})
    with pytest.raises(MismatchError) as caught:
        natjax.load_weights(model(), path)
    assert "\x1b" not in str(caught.value)
    assert "\x1b" not in str(natjax.load_weights(model(), path, strict=False))


def test_other_number_of_classes(tmp_path):
    path = write(tmp_path / "x.pth", OFFICIAL)
    target = golden_models.abstract("nat", "b", num_classes=3)
    for param in named_params(target).values():
        param.set_value(jnp.full(param.shape, 7, param.dtype))
    with pytest.raises(MismatchError, match="drop_head"):
        natjax.load_weights(target, path)
    report = natjax.load_weights(target, path, drop_head=True)
    assert report.dropped == ("head.bias", "head.weight")
    found = values(target)
    assert (found.pop("head.kernel") == 7).all()
    assert (found.pop("head.bias") == 7).all()
    assert_equal(found, {k: v for k, v in OFFICIAL.items() if not k.startswith("head.")})


@pytest.mark.parametrize("output_norms", [True, False])
def test_a_backbone_from_a_classifier_and_back(output_norms, tmp_path):
    arrays = OFFICIAL if output_norms else golden_models.backbone("nat", "b")
    path = write(tmp_path / "x.pth", arrays)
    target = model(output_norms=output_norms)
    with pytest.raises(MismatchError, match="drop_head=True"):
        natjax.load_weights(target, path)
    report = natjax.load_weights(target, path, drop_head=True)
    own = {"norm0.scale", "norm1.bias"} if output_norms else {"norm.scale", "head.kernel"}
    assert own <= set(report.kept) | {"head.kernel"}
    for name, array in values(target).items():
        is_own = name.startswith(("norm", "head"))
        assert (array == 7).all() == is_own, name


def test_resized_window(tmp_path):
    target = model(kernel_size=11)
    path = write(tmp_path / "x.pth", OFFICIAL)
    with pytest.raises(MismatchError, match="resize_rpb=True"):
        natjax.load_weights(target, path)
    report = natjax.load_weights(target, path, resize_rpb=True)
    assert len(report.resized) == 3
    found = values(target)
    assert found["levels.0.blocks.0.attn.rpb"].shape == (1, 21, 21)
    np.testing.assert_allclose(
        found["levels.0.blocks.0.attn.rpb"][0, 10, 10],
        OFFICIAL["levels.0.blocks.0.attn.rpb"][0, 6, 6],
        rtol=1e-6,
    )


def test_global_attention_at_another_input_size(tmp_path):
    path = write(tmp_path / "x.pth", golden_models.official("vit_rpb", "a"))
    target = golden_models.abstract("vit_rpb", "a", input_size=96)
    natjax.load_weights(target, path, resize_rpb=True)
    assert jax.jit(target)(jnp.ones((1, 96, 96, 3))).shape == (1, 10)


def test_heads_are_never_resized(tmp_path):
    arrays = OFFICIAL | {"levels.0.blocks.0.attn.rpb": np.ones((2, 21, 21), np.float32)}
    with pytest.raises(MismatchError, match=r"\[2, 21, 21\] in the file, \[1, 13, 13\]"):
        natjax.load_weights(model(), write(tmp_path / "x.pth", arrays), resize_rpb=True)


def test_long_thin_tables_are_not_resized():
    arrays = OFFICIAL | {"levels.0.blocks.0.attn.rpb": np.ones((1, 1, 21), np.float32)}
    with pytest.raises(MismatchError, match=r"\[1, 1, 21\] in the file, \[1, 13, 13\]"):
        natjax.load_weights(model(), arrays, resize_rpb=True)


def test_index_buffers_of_vit_rpb_are_skipped(tmp_path):
    official = golden_models.official("vit_rpb", "a")
    buffer = {"layers.0.attn.relative_position_index": np.zeros((64, 64), np.int64)}
    target = golden_models.abstract("vit_rpb", "a")
    report = natjax.load_weights(target, write(tmp_path / "x.pth", official | buffer))
    assert report.buffers == tuple(buffer)
    assert_equal(values(target), official)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_values_take_the_dtype_of_the_model(dtype, tmp_path):
    arrays = {key: array.astype(dtype) for key, array in OFFICIAL.items()}
    target = model()
    natjax.load_weights(target, write(tmp_path / "x.pth", arrays))
    found = values(target)
    assert {array.dtype for array in found.values()} == {np.dtype(np.float32)}
    assert_equal(found, {k: v.astype(dtype).astype(np.float32) for k, v in OFFICIAL.items()})


@pytest.mark.oldest
def test_values_take_the_sharding_of_the_model(tmp_path):
    target = model()
    mesh = jax.make_mesh((2,), ("x",), devices=jax.devices()[:2])
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "x"))
    param = named_params(target)["head.kernel"]
    param.set_value(jax.device_put(param.get_value(), sharding))
    natjax.load_weights(target, write(tmp_path / "x.pth", OFFICIAL))
    assert named_params(target)["head.kernel"].get_value().sharding == sharding
    assert_equal(values(target), OFFICIAL)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([np.ones(3)], "must hold arrays by name; it holds a list"),
        ({"fc.weight": np.ones(3)}, r"holds no NAT or DiNAT: .* its keys are 'fc.weight'"),
        ({}, "holds no NAT or DiNAT"),
        ({"patch_embed.norm.weight": 3.5}, "must be an array; got float"),
        ({"patch_embed.norm.weight": np.ones(3), 5: np.ones(3)}, "names must be strings; got int"),
        (
            {"a.patch_embed.norm.weight": np.ones(3), "b.patch_embed.norm.weight": np.ones(3)},
            "holds 2 models",
        ),
    ],
)
def test_what_is_no_model_is_refused(content, message):
    with pytest.raises(WeightsError, match=message):
        find_state_dict(memory_file(content))


def test_missing_files():
    with pytest.raises(WeightsError, match=r"there is no file nowhere\.pth$"):
        natjax.load_weights(model(), "nowhere.pth")
    tiny = nnx.eval_shape(lambda: natjax.create_model("nat_tiny", rngs=nnx.Rngs(0)))
    with pytest.raises(WeightsError, match=r"nor published weights of that name; there are .*1k"):
        natjax.load_weights(tiny, "imagenet2k")
    with pytest.raises(WeightsError, match="hf:// must be followed by organisation/model"):
        natjax.load_weights(tiny, "hf://../../etc")


def test_create_model_draws_only_what_is_not_loaded(tmp_path):
    source = draw.filled(lambda rngs: natjax.create_model("nat_micro", rngs=rngs))
    path = tmp_path / "x.safetensors"
    natjax.save_weights(source, path)
    loaded = natjax.create_model("nat_micro", weights=path)
    assert_same(values(loaded), values(source))
    other = natjax.create_model(
        "nat_micro", weights=path, num_classes=3, drop_head=True, rngs=nnx.Rngs(1)
    )
    found = values(other)
    assert found.pop("head.kernel").shape == (64, 3)
    assert not found.pop("head.bias").any()
    assert_same(found, {k: v for k, v in values(source).items() if not k.startswith("head.")})


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


def test_create_model_needs_rngs_or_weights(tmp_path):
    with pytest.raises(ValueError, match="rngs must be given where weights are not"):
        natjax.create_model("nat_micro")
    path = tmp_path / "x.safetensors"
    natjax.save_weights(draw.filled(lambda rngs: natjax.create_model("nat_micro", rngs=rngs)), path)
    with pytest.raises(ValueError, match=r"rngs must be given .*: head\.bias, head\.kernel"):
        natjax.create_model("nat_micro", weights=path, drop_head=True)


def test_a_model_of_ones_own_keeps_its_config(tmp_path):
    config = NATConfig(dim=8, depths=(1,), num_heads=(1,), kernel_size=3, num_classes=2)
    mine = draw.filled(lambda rngs: natjax.NAT(config, rngs=rngs))
    natjax.save_weights(mine, tmp_path / "mine.safetensors")
    other = nnx.eval_shape(lambda: natjax.NAT(config, rngs=nnx.Rngs(1)))
    natjax.load_weights(other, tmp_path / "mine.safetensors")
    assert_same(values(other), values(mine))
