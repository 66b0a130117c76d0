"""The table of published weights."""

import dataclasses
import http.server
import pathlib
import threading
from email.message import Message
from urllib.error import HTTPError

import draw
import numpy as np
import pytest
from flax import nnx

import natjax
from natjax.backbones.variants import VARIANTS
from natjax.weights import PUBLISHED, WeightsError, load, published_weights, resolve
from natjax.weights.load import named_params
from natjax.weights.published import find_published
from natjax.weights.resolve import is_published_name

DINAT_SIZES = ["mini", "tiny", "small", "base", "large", "s_tiny", "s_small", "s_base", "s_large"]
# Every file of the official project, as its documents list them.
FILES = {
    "nat/checkpoints/CLS/": ["nat_mini", "nat_tiny", "nat_small", "nat_base"],
    "nat/checkpoints/DET/": [
        *(f"nat_{size}_maskrcnn" for size in ("mini", "tiny", "small")),
        *(f"nat_{size}_cascademaskrcnn" for size in ("mini", "tiny", "small", "base")),
    ],
    "nat/checkpoints/SEG/": [f"nat_{s}_upernet" for s in ("mini", "tiny", "small", "base")],
    "dinat/checkpoints/imagenet1k/": [
        *(f"dinat_{size}_in1k_224" for size in ("mini", "tiny", "small", "base")),
        *(f"dinat_large_in22k_in1k_{size}" for size in ("224", "384", "384_11x11")),
        *(f"dinat_s_{size}_in1k_224" for size in ("tiny", "small", "base", "large")),
        "dinat_s_large_in1k_384",
    ],
    "dinat/checkpoints/imagenet22k/": [
        "dinat_large_in22k_224",
        "dinat_large_in22k_224_11x11interp",
        "dinat_s_large_in22k_224",
    ],
    "dinat/checkpoints/isotropic/": [
        f"{kind}_{size}_in1k_224"
        for kind in ("nat_isotropic", "dinat_isotropic", "vitrpb")
        for size in ("small", "base")
    ],
    "dinat/checkpoints/coco/": [
        *(f"maskrcnn_dinat_{size}" for size in ("mini", "tiny", "small", "s_tiny", "s_small")),
        *(f"cascadedmaskrcnn_dinat_{size}" for size in DINAT_SIZES),
    ],
    "dinat/checkpoints/ade20k/": [f"upernet_dinat_{size}" for size in DINAT_SIZES],
    "dinat/checkpoints/m2f/": [
        *(
            f"mask2former_dinat_large_{data}_{kind}"
            for data in ("ade20k", "cityscapes")
            for kind in ("instance", "panoptic", "semantic")
        ),
        *(f"mask2former_dinat_large_coco_{kind}" for kind in ("instance", "panoptic")),
    ],
}


def test_every_published_file_is_there_once():
    expected = [
        f"https://shi-labs.com/projects/{place}{file}.pth"
        for place, files in FILES.items()
        for file in files
    ]
    assert sorted(entry.address for entry in PUBLISHED) == sorted(expected)
    names = [(entry.model, entry.weights) for entry in PUBLISHED]
    assert len(names) == len(set(names))


def test_every_published_variant_has_weights():
    own = {"nat_micro", "nat_pico"}
    assert {entry.model for entry in PUBLISHED} == set(VARIANTS) - own


@pytest.mark.parametrize("entry", PUBLISHED, ids=lambda entry: f"{entry.model}-{entry.weights}")
def test_options_suit_the_model(entry):
    """Dilations have one number for each block, and odd entries alone dilate."""
    config = dataclasses.replace(VARIANTS[entry.model], **entry.options)
    for level in config.dilations if isinstance(config, natjax.NATConfig) else ():
        assert set(level[::2]) == {1}
    is_backbone = "imagenet" not in entry.weights
    assert config.output_norms == is_backbone
    assert (config.num_classes == 21841) == (entry.weights == "imagenet22k")


def test_names():
    assert published_weights("nat_base") == ["imagenet1k", "coco_cascade", "ade20k_upernet"]
    assert find_published(["nat_base"], "imagenet1k").address.endswith("CLS/nat_base.pth")
    with pytest.raises(WeightsError, match="'imagenet22k': nat_base has imagenet1k, coco_cascade"):
        find_published(["nat_base"], "imagenet22k")
    with pytest.raises(WeightsError, match="published for nat_tiny and dinat_tiny"):
        find_published(["nat_tiny", "dinat_tiny"], "imagenet1k")


def test_a_file_of_that_name_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_published_name("imagenet1k")
    assert not is_published_name(pathlib.Path("imagenet1k"))
    (tmp_path / "imagenet1k").touch()
    assert not is_published_name("imagenet1k")


@pytest.fixture
def fetched(monkeypatch, tmp_path):
    """What would have been downloaded; a file of nat_micro comes instead."""
    path, addresses = tmp_path / "nat_micro.safetensors", []
    model = draw.filled(lambda rngs: natjax.create_model("nat_micro", rngs=rngs))
    natjax.save_weights(model, path)

    def download(url, folder):
        addresses.append((url, folder))
        status = 403 if "forbidden" in url else 404
        if url.endswith("model.safetensors"):
            raise WeightsError("not found") from HTTPError(url, status, "", Message(), None)
        return path

    monkeypatch.setattr(resolve, "download", download)
    return addresses


def test_published_names_lead_to_addresses(fetched):
    with pytest.raises(WeightsError, match="does not fit the model"):
        natjax.create_model("nat_tiny", weights="imagenet1k")
    assert fetched[0][0] == "https://shi-labs.com/projects/nat/checkpoints/CLS/nat_tiny.pth"


def test_the_hub_has_files_of_two_names(fetched):
    natjax.create_model("nat_micro", weights="hf://shi-labs/nat-mini-in1k-224")
    address = "https://huggingface.co/shi-labs/nat-mini-in1k-224/resolve/main"
    assert [url for url, _ in fetched] == [
        f"{address}/model.safetensors",
        f"{address}/pytorch_model.bin",
    ]


class _OldModel(http.server.BaseHTTPRequestHandler):
    """A hub that has no safetensors file, but the older one."""

    def do_GET(self):
        content = self.server.content if self.path.endswith("/pytorch_model.bin") else b""
        self.send_response(200 if content else 404)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


def test_a_model_from_before_safetensors_is_downloaded(monkeypatch, tmp_path):
    model = draw.filled(lambda rngs: natjax.create_model("nat_micro", rngs=rngs))
    natjax.save_weights(model, tmp_path / "x.bin", naming="hf")
    monkeypatch.setenv("NATJAX_CACHE", str(tmp_path / "cache"))
    with http.server.ThreadingHTTPServer(("localhost", 0), _OldModel) as server:
        server.content = (tmp_path / "x.bin").read_bytes()
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(resolve, "_HUB", f"http://localhost:{server.server_port}")
        loaded = natjax.create_model("nat_micro", weights="hf://old/model")
        server.shutdown()
    found, expected = named_params(loaded), named_params(model)
    for name, param in expected.items():
        np.testing.assert_array_equal(found[name].get_value(), param.get_value())
    assert natjax.create_model("nat_micro", weights=next((tmp_path / "cache").glob("*.bin")))


def test_other_failures_of_the_hub_are_final(fetched):
    with pytest.raises(WeightsError, match="not found"):
        natjax.create_model("nat_micro", weights="hf://organisation/forbidden")
    assert len(fetched) == 1


def test_weights_of_a_detector_bring_its_dilations(monkeypatch):
    """The model of a published backbone is that of the detector, unless the caller says else."""
    made = []

    def build_loaded(build, *_, **__):
        made.append(nnx.eval_shape(lambda: build(nnx.Rngs(0))))
        return made[-1]

    monkeypatch.setattr(load, "build_loaded", build_loaded)
    natjax.create_model("dinat_mini", weights="coco_maskrcnn")
    natjax.create_model("dinat_mini", weights="coco_maskrcnn", kernel_size=5, output_norms=False)
    natjax.create_model("dinat_large", weights="coco_mask2former_instance")
    configs = [model.config for model in made]
    assert configs[0].dilations[0] == (1, 28, 1)
    assert configs[0].output_norms
    assert configs[0].num_classes == 0
    assert (configs[1].kernel_size, configs[1].output_norms) == (5, False)
    assert configs[2].kernel_size == 11
