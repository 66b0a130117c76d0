"""Files that natjax writes."""

import io
import pickle
import zipfile

import draw
import golden_models
import goldens
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors import safe_open

import natjax
from natjax.weights import WeightsError
from natjax.weights.formats import read_file
from natjax.weights.load import named_params
from natjax.weights.names import by_name
from natjax.weights.save import rename_arrays
from natjax.weights.torchfile.writer import write_torch

ARRAYS = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a.half": np.arange(3, dtype=np.float16),
    "a.brain": np.arange(3).astype(ml_dtypes.bfloat16),
    "a.double": np.arange(3, dtype=np.float64),
    "a.index": np.arange(3, dtype=np.int64),
    "a.scalar": np.array(5, np.float32),
    "a.empty": np.zeros((0, 3), np.float32),
    "ä.turned": np.arange(24, dtype=np.float32).reshape(2, 3, 4).transpose(2, 0, 1),
}


def test_torch_files_are_read_back(tmp_path):
    write_torch(tmp_path / "x.pth", ARRAYS)
    content = read_file(tmp_path / "x.pth").content
    assert list(content) == list(ARRAYS)
    for key, array in ARRAYS.items():
        np.testing.assert_array_equal(content[key], array)
        assert content[key].dtype == array.dtype


class Symbolic(pickle.Unpickler):
    """Builds what a pickle describes, out of names alone; only PyTorch's own names are known."""

    def find_class(self, module, name):
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda *arguments: (name, arguments)
        assert (module, name) == ("torch", "FloatStorage")
        return name

    def persistent_load(self, pid):
        return ("storage at", pid)


def described(path):
    with zipfile.ZipFile(path) as file:
        (name,) = [name for name in file.namelist() if name.endswith("/data.pkl")]
        return Symbolic(io.BytesIO(file.read(name))).load()


def test_pickle_is_what_torch_writes(tmp_path):
    """Against a file that PyTorch wrote of the same arrays."""
    real = next(iter(goldens.FULL.glob("pth/nat_b_bare.pth")), None)
    if real is None:
        pytest.skip("the files that PyTorch wrote are not here (shared/golden/pth)")
    write_torch(tmp_path / "x.pth", dict(read_file(real).content))
    mine, theirs = described(tmp_path / "x.pth"), described(real)
    assert len(theirs) == 58
    assert list(mine) == list(theirs)
    assert mine == theirs


def test_equal_weights_give_equal_files(tmp_path):
    write_torch(tmp_path / "x.pth", ARRAYS)
    write_torch(tmp_path / "y.pth", ARRAYS)
    assert (tmp_path / "x.pth").read_bytes() == (tmp_path / "y.pth").read_bytes()


def test_torch_has_no_such_dtype(tmp_path):
    with pytest.raises(WeightsError, match=r"'x' must be of float64, .*; got complex64"):
        write_torch(tmp_path / "x.pth", {"x": np.ones(2, np.complex64)})


@pytest.fixture(scope="module")
def model():
    return draw.filled(lambda rngs: natjax.create_model("nat_micro", rngs=rngs))


@pytest.mark.parametrize("naming", ["natjax", "official", "hf"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".bin"])
def test_saved_weights_load(model, naming, suffix, tmp_path):
    path = tmp_path / f"x{suffix}"
    natjax.save_weights(model, path, naming=naming)
    other = nnx.eval_shape(lambda: natjax.create_model("nat_micro", rngs=nnx.Rngs(1)))
    report = natjax.load_weights(other, path)
    assert report.naming == naming
    assert report.format == ("safetensors" if suffix == ".safetensors" else "torch")
    found, expected = named_params(other), named_params(model)
    assert found.keys() == expected.keys()
    for name, param in expected.items():
        np.testing.assert_array_equal(found[name].get_value(), param.get_value())
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_safetensors_say_what_they_hold(model, tmp_path):
    for naming, tag in (("natjax", None), ("official", "pt"), ("hf", "pt")):
        natjax.save_weights(model, tmp_path / "x.safetensors", naming=naming)
        with safe_open(tmp_path / "x.safetensors", "numpy") as file:
            metadata = file.metadata()
        assert metadata["natjax.model"] == "nat_micro"
        assert metadata["natjax.naming"] == naming
        assert '"dim": 32' in metadata["natjax.config"]
        assert metadata.get("format") == tag


def test_index_buffers_of_vit_rpb_are_written_for_strict_loading():
    """Each entry is where the flattened bias of a pair of tokens is: key minus query."""
    official = golden_models.official("vit_rpb", "a")
    model = golden_models.abstract("vit_rpb", "a")
    config = model.config
    arrays = {n: np.zeros(p.shape, np.float32) for n, p in named_params(model).items()}
    buffers = {
        key: array
        for key, array in rename_arrays(arrays, by_name(config.namings())["official"]).items()
        if key.endswith("relative_position_index")
    }
    side = config.map_size
    assert len(buffers) == config.depth
    index = buffers["layers.0.attn.relative_position_index"]
    assert index.shape == (side**2, side**2)
    assert index.dtype == np.int64
    table = official["layers.0.attn.rpb"].reshape(len(official["layers.0.attn.rpb"]), -1)
    for query in [(0, 0), (3, 5), (side - 1, 0)]:
        for key in [(0, 0), (2, 7), (side - 1, side - 1)]:
            place = index[query[0] * side + query[1], key[0] * side + key[1]]
            row, column = key[0] - query[0] + side - 1, key[1] - query[1] + side - 1
            assert table[0, place] == official["layers.0.attn.rpb"][0, row, column]


@pytest.mark.parametrize(
    ("name", "naming", "message"),
    [
        ("x.txt", "natjax", r"must end in one of \.safetensors, .*; got x\.txt"),
        ("no/x.pth", "natjax", "there is no folder"),
    ],
)
def test_wrong_targets(model, name, naming, message, tmp_path):
    with pytest.raises(WeightsError, match=message):
        natjax.save_weights(model, tmp_path / name, naming=naming)


def test_models_that_transformers_does_not_have(tmp_path):
    config = natjax.NATConfig(dim=8, depths=(1,), num_heads=(1,), overlapping=False)
    model = draw.filled(lambda rngs: natjax.NAT(config, rngs=rngs))
    with pytest.raises(WeightsError, match="Hugging Face has NAT and DiNAT only"):
        natjax.save_weights(model, tmp_path / "x.safetensors", naming="hf")
    assert not list(tmp_path.iterdir())


def test_models_without_values(tmp_path):
    abstract = golden_models.abstract("nat", "b")
    with pytest.raises(WeightsError, match="58 parameters have no value"):
        natjax.save_weights(abstract, tmp_path / "x.safetensors")
