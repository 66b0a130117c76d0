"""The table of published weights."""

import dataclasses
import hashlib
import http.server
import os
import pathlib
import subprocess
import sys
import threading

import draw
import numpy as np
import pytest
from flax import nnx

import natjax
from natjax.backbones.variants import VARIANTS
from natjax.weights import PUBLISHED, WeightsError, load, published_weights
from natjax.weights import published as module
from natjax.weights.load import named_params
from natjax.weights.published import find_published, is_published_name

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


def test_a_folder_of_that_name_does_not_win(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "imagenet1k").mkdir()
    assert is_published_name("imagenet1k")


def test_whole_models_have_their_backbone_s_weights():
    assert published_weights("mask_rcnn_nat_mini") == ["coco"]
    assert published_weights("cascade_mask_rcnn_dinat_s_large") == ["coco"]
    for name in ("ade20k", "ade20k_upernet"):
        assert find_published(["upernet_nat_base"], name).model == "nat_base"
    with pytest.raises(WeightsError, match="nat_base has imagenet1k, "):
        find_published(["nat_base"], "ade20k")
    wholes = [entry.whole for entry in PUBLISHED if entry.whole]
    assert len(wholes) == len(set(wholes)) == 34


def test_published_names_lead_to_addresses(monkeypatch, tmp_path):
    path, addresses = tmp_path / "nat_micro.safetensors", []
    natjax.save_weights(draw.filled(lambda r: natjax.create_model("nat_micro", rngs=r)), path)

    def download(url, folder):
        addresses.append(url)
        return path

    monkeypatch.setattr(module, "download", download)
    with pytest.raises(WeightsError, match="does not fit the model"):
        natjax.create_model("nat_tiny", weights="imagenet1k")
    assert addresses == ["https://shi-labs.com/projects/nat/checkpoints/CLS/nat_tiny.pth"]


class Hub(http.server.BaseHTTPRequestHandler):
    """The part of the Hugging Face hub that serves files; `files` by the end of their address."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.requests.append(self.path)
        self.server.tokens.append(self.headers.get("Authorization"))
        found = self.server.files.get(self.path)
        if found is None:
            self.send_response(404)
            missing = "/resolve/" in self.path and "/gone/" not in self.path
            self.send_header("X-Error-Code", "EntryNotFound" if missing else "RepoNotFound")
            self.send_header("X-Error-Message", "not \x1b[2Jthere")
            found = b""
        else:
            self.send_response(200)
            self.send_header("ETag", f'"{hashlib.sha256(found).hexdigest()}"')
            self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Content-Length", str(len(found)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(found)

    do_HEAD = do_GET  # noqa: N815 - as the library calls it

    def log_message(self, *_):
        pass


LOAD_FROM_HUB = """
import sys
from natjax.weights import WeightsError
from natjax.weights.load import open_weights
for name in sys.argv[1:]:
    try:
        print(sum(x.size for x in open_weights(name).arrays.values()))
    except WeightsError as error:
        print(error)
"""


@pytest.fixture(scope="module")
def from_hub(tmp_path_factory):
    """What is on a hub, and what a process that asks for `names` says."""
    pytest.importorskip("huggingface_hub", reason="natjax[hub] is not installed")
    folder = tmp_path_factory.mktemp("hub")
    model = draw.filled(lambda rngs: natjax.create_model("nat_micro", rngs=rngs))
    for suffix in ("safetensors", "bin"):
        natjax.save_weights(model, folder / f"x.{suffix}", naming="hf")
    size = sum(param.size for param in named_params(model).values())
    with http.server.ThreadingHTTPServer(("localhost", 0), Hub) as server:
        server.requests, server.tokens = [], []
        server.files = {
            "/new/model/resolve/main/model.safetensors": (folder / "x.safetensors").read_bytes(),
            "/new/model/resolve/v1.0/model.safetensors": (folder / "x.bin").read_bytes(),
            "/old/model/resolve/main/pytorch_model.bin": (folder / "x.bin").read_bytes(),
        }
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environment = os.environ | {
            "HF_ENDPOINT": f"http://localhost:{server.server_port}",
            "HF_HOME": str(folder / "cache"),
            "HF_TOKEN": "secret",
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "*",
        }

        def ask(*names):
            command = [sys.executable, "-c", LOAD_FROM_HUB, *names]
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
            return done.stdout.splitlines()

        yield server, size, ask
        server.shutdown()


def test_the_hub_has_files_of_two_names_and_revisions(from_hub):
    server, size, ask = from_hub
    names = ["hf://new/model", "hf://new/model@v1.0", "hf://old/model"]
    assert ask(*names) == [str(size)] * 3
    assert "/new/model/resolve/v1.0/model.safetensors" in server.requests
    assert "/old/model/resolve/main/model.safetensors" in server.requests
    assert "Bearer secret" in server.tokens


def test_failures_of_the_hub_are_ours(from_hub):
    _, _, ask = from_hub
    gone, none, odd = ask("hf://gone/model", "hf://empty/model", "hf://../../etc")
    assert gone.startswith("hf://gone/model: ")
    assert "secret" not in gone
    assert "\x1b" not in gone
    assert "must have one of model.safetensors, pytorch_model.bin" in none
    assert "must be followed by organisation/model" in odd


def test_without_the_hub_s_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(WeightsError, match=r"natjax\[hub\].*/a/b/resolve/v2/model.safetensors"):
        natjax.create_model("nat_micro", weights="hf://a/b@v2")


def test_weights_of_a_detector_bring_its_dilations(monkeypatch):
    """A published backbone is that of the detector, unless the caller says else."""
    made = []
    names = ("patch_embed.norm.weight", *(f"norm{i}.bias" for i in range(4)))
    state = load.open_weights({name: np.ones(1, np.float32) for name in names})

    def build_from(build, *_, **__):
        made.append(nnx.eval_shape(lambda: build(nnx.Rngs(0))))
        return made[-1]

    monkeypatch.setattr("natjax.create.open_weights", lambda *_, **__: state)
    monkeypatch.setattr("natjax.create.build_from", build_from)
    natjax.create_model("dinat_mini", backbone="coco_maskrcnn")
    natjax.create_model("dinat_mini", backbone="coco_maskrcnn", kernel_size=5, output_norms=False)
    natjax.create_model("dinat_large", backbone="coco_mask2former_instance")
    configs = [model.config for model in made]
    assert configs[0].dilations[0] == (1, 28, 1)
    assert configs[0].output_norms
    assert configs[0].num_classes == 0
    assert (configs[1].kernel_size, configs[1].output_norms) == (5, False)
    assert configs[2].kernel_size == 11


def test_a_detector_is_not_taken_for_its_backbone():
    with pytest.raises(ValueError, match=r"whole model \(COCO, Mask R-CNN\).*backbone='coco_mask"):
        natjax.create_model("dinat_mini", weights="coco_maskrcnn")


def test_published_weights_of_no_model():
    with pytest.raises(ValueError, match="got 'nat_tinyy'; did you mean nat_tiny"):
        published_weights("nat_tinyy")
    assert published_weights("nat_micro") == []
