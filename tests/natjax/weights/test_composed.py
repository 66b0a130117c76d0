"""Tables of names that are put together, for modules made of a backbone and heads."""

import draw
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import natjax
from natjax.backbones.names import OFFICIAL
from natjax.weights import MismatchError, WeightsError
from natjax.weights.formats import read_file
from natjax.weights.load import named_params
from natjax.weights.names import Buffer, batch_norm, conv, linear, namings_of

CONFIG = natjax.NATConfig(
    dim=8, depths=(1, 1), num_heads=(1, 2), kernel_size=3, num_classes=0, output_norms=True
)


class BatchNorm(nnx.Module):
    """The state of one, with PyTorch's count of batches."""

    def __init__(self, size):
        self.scale, self.bias = nnx.Param(jnp.ones(size)), nnx.Param(jnp.zeros(size))
        self.mean, self.var = nnx.BatchStat(jnp.zeros(size)), nnx.BatchStat(jnp.ones(size))
        self.num_batches = nnx.BatchStat(jnp.zeros((), jnp.int32))


class Segmentor(nnx.Module):
    """A backbone with a head that has all kinds of layers."""

    def __init__(self, classes=5, *, rngs):
        self.backbone = natjax.NAT(CONFIG, rngs=rngs)
        self.fuse = nnx.Conv(16, 6, (3, 3), use_bias=False, rngs=rngs)
        self.bn = BatchNorm(6)
        self.classify = nnx.Linear(6, classes, rngs=rngs)

    def namings(self):
        official = OFFICIAL.under("backbone.", "backbone.").joined(
            *conv("decode_head.convs.0.conv", "fuse"),
            *batch_norm("decode_head.convs.0.bn", "bn"),
            *linear("decode_head.conv_seg", "classify"),
            head=("classify.",),
            buffers=(Buffer(".index", ".running_mean", np.ones),),
        )
        return (official,)

    def published_names(self):
        return ["upernet_nat_tiny"]


def filled(**options):
    model = draw.filled(lambda rngs: Segmentor(rngs=rngs, **options))
    model.bn.num_batches.set_value(jnp.int32(7))
    model.bn.mean.set_value(jnp.arange(6.0))
    model.bn.var.set_value(jnp.arange(6.0) + 1)
    return model


def abstract(**options):
    return nnx.eval_shape(lambda: Segmentor(rngs=nnx.Rngs(0), **options))


def assert_equal(found, expected):
    found, expected = named_params(found), named_params(expected)
    assert found.keys() == expected.keys()
    for name, param in expected.items():
        np.testing.assert_array_equal(found[name].get_value(), param.get_value(), err_msg=name)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("naming", ["natjax", "official"])
def test_there_and_back(naming, suffix, tmp_path):
    model, path = filled(), tmp_path / f"x{suffix}"
    natjax.save_weights(model, path, naming=naming)
    keys = read_file(path).content.keys()
    if naming == "official":
        assert {"backbone.norm1.weight", "decode_head.convs.0.bn.running_var"} <= set(keys)
        assert "decode_head.convs.0.bn.index" in keys
        count = read_file(path).content["decode_head.convs.0.bn.num_batches_tracked"]
        assert (count.dtype, count.shape, int(count)) == (np.int64, (), 7)
    else:
        assert keys == named_params(model).keys()
    loaded = abstract()
    report = natjax.load_weights(loaded, path)
    assert report.naming == naming
    assert not report.skipped
    assert_equal(loaded, model)
    assert loaded.bn.num_batches.get_value().dtype == jnp.int32


def test_from_a_dict_of_arrays():
    model, loaded = filled(), abstract()
    arrays = {f"module.{n}": p.get_value() for n, p in named_params(model).items()}
    report = natjax.load_weights(loaded, arrays)
    assert (report.format, report.container) == ("arrays", "module")
    assert_equal(loaded, model)
    with pytest.raises(WeightsError, match=r"'module\.bn\.mean' must be an array; got list"):
        natjax.load_weights(loaded, arrays | {"module.bn.mean": [1.0]})
    with pytest.raises(MismatchError, match=r"the given arrays does not fit .*\n.*\n  .*extra"):
        natjax.load_weights(loaded, arrays | {"module.extra": jnp.ones(2)})


def test_a_backbone_takes_its_part(tmp_path):
    model = filled()
    natjax.save_weights(model, tmp_path / "x.pth", naming="official")
    backbone = nnx.eval_shape(lambda: natjax.NAT(CONFIG, rngs=nnx.Rngs(0)))
    report = natjax.load_weights(backbone, tmp_path / "x.pth")
    assert report.left_out == {"decode_head": 9}
    assert_equal(backbone, model.backbone)


def test_a_backbone_alone_is_no_segmentor(tmp_path):
    natjax.save_weights(filled().backbone, tmp_path / "x.safetensors", naming="official")
    with pytest.raises(WeightsError, match="a backbone alone, so load it into the model's back"):
        natjax.load_weights(abstract(), tmp_path / "x.safetensors")


def test_other_classes(tmp_path):
    natjax.save_weights(filled(), tmp_path / "x.pth", naming="official")
    other = filled(classes=3)
    kept = np.asarray(other.classify.kernel.get_value())
    with pytest.raises(MismatchError, match="drop_head=True"):
        natjax.load_weights(other, tmp_path / "x.pth")
    report = natjax.load_weights(other, tmp_path / "x.pth", drop_head=True)
    assert report.dropped == ("decode_head.conv_seg.bias", "decode_head.conv_seg.weight")
    np.testing.assert_array_equal(other.classify.kernel.get_value(), kept)


def test_integers_and_floats_are_not_mixed():
    arrays = {name: np.asarray(p.get_value()) for name, p in named_params(filled()).items()}
    for name, wrong, text in (
        ("bn.num_batches", np.float32(7), "of integers"),
        ("bn.mean", np.zeros(6, np.int32), "of floats"),
    ):
        with pytest.raises(MismatchError, match=rf"{name}: .*{text}"):
            natjax.load_weights(abstract(), arrays | {name: np.asarray(wrong)})


def test_keys_are_unique_and_lead_back():
    names = list(named_params(abstract()))
    for naming in namings_of(abstract()).values():
        bindings, nameless = naming.bind(names)
        assert not nameless
        keys = [key for binding in bindings for key in binding.theirs]
        assert len(keys) == len(set(keys)) == len(names)
        for binding in bindings:
            assert all(naming.translate(key) == binding for key in binding.theirs)


def test_published_weights_of_whole_models():
    with pytest.raises(WeightsError, match="'imagenet1k': upernet_nat_tiny has ade20k"):
        natjax.load_weights(abstract(), "imagenet1k")


def test_a_module_without_names_is_told_what_to_offer(tmp_path):
    layer = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    with pytest.raises(WeightsError, match=r"Linear .* method namings\(\)"):
        natjax.load_weights(layer, {"kernel": jax.numpy.ones((2, 3))})
    with pytest.raises(WeightsError, match=r"Linear .* method namings\(\)"):
        natjax.save_weights(layer, tmp_path / "x.safetensors")
