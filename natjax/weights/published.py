"""Where the published weights are, and what models they are for.

The addresses were read in the official project's documents; nothing of it could be fetched from
where natjax was written, so sizes and checksums are unknown.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from natjax.weights.errors import WeightsError

_BASE = "https://shi-labs.com/projects/"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
    """One published file.

    Attributes:
      model: name of the model.
      weights: what to call the weights, such as ``"imagenet1k"``.
      address: where the file is.
      task: what it was trained for.
      resolution: side of the training images, or height and width.
      accuracy: as published; not measured by natjax.
      options: arguments of `natjax.create_model` that differ from the model's own.
    """

    model: str
    weights: str
    address: str
    task: str
    resolution: str
    accuracy: str
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


def _classifier(model: str, file: str, accuracy: str, resolution: int = 224) -> Published:
    return Published(
        model=model,
        weights="imagenet1k",
        address=_BASE + file,
        task="ImageNet-1K",
        resolution=str(resolution),
        accuracy=f"{accuracy} top-1",
    )


def _pretrained(model: str, file: str) -> Published:
    return Published(
        model=model,
        weights="imagenet22k",
        address=f"{_BASE}dinat/checkpoints/imagenet22k/{file}.pth",
        task="ImageNet-22K",
        resolution="224",
        accuracy="none published",
    )


_CLS, _IN1K = "nat/checkpoints/CLS/", "dinat/checkpoints/imagenet1k/"
_ISO = "dinat/checkpoints/isotropic/"

_CLASSIFIERS = (
    _classifier("nat_mini", f"{_CLS}nat_mini.pth", "81.8"),
    _classifier("nat_tiny", f"{_CLS}nat_tiny.pth", "83.2"),
    _classifier("nat_small", f"{_CLS}nat_small.pth", "83.7"),
    _classifier("nat_base", f"{_CLS}nat_base.pth", "84.3"),
    _classifier("dinat_mini", f"{_IN1K}dinat_mini_in1k_224.pth", "81.8"),
    _classifier("dinat_tiny", f"{_IN1K}dinat_tiny_in1k_224.pth", "82.7"),
    _classifier("dinat_small", f"{_IN1K}dinat_small_in1k_224.pth", "83.8"),
    _classifier("dinat_base", f"{_IN1K}dinat_base_in1k_224.pth", "84.4"),
    _classifier("dinat_large", f"{_IN1K}dinat_large_in22k_in1k_224.pth", "86.6"),
    _classifier("dinat_large_384", f"{_IN1K}dinat_large_in22k_in1k_384.pth", "87.4", 384),
    _classifier(
        "dinat_large_384_11x11", f"{_IN1K}dinat_large_in22k_in1k_384_11x11.pth", "87.5", 384
    ),
    _classifier("dinat_s_tiny", f"{_IN1K}dinat_s_tiny_in1k_224.pth", "81.8"),
    _classifier("dinat_s_small", f"{_IN1K}dinat_s_small_in1k_224.pth", "83.5"),
    _classifier("dinat_s_base", f"{_IN1K}dinat_s_base_in1k_224.pth", "83.8"),
    _classifier("dinat_s_large", f"{_IN1K}dinat_s_large_in1k_224.pth", "86.5"),
    _classifier("dinat_s_large_384", f"{_IN1K}dinat_s_large_in1k_384.pth", "87.4", 384),
    _classifier("nat_isotropic_small", f"{_ISO}nat_isotropic_small_in1k_224.pth", "80.0"),
    _classifier("nat_isotropic_base", f"{_ISO}nat_isotropic_base_in1k_224.pth", "81.6"),
    _classifier("dinat_isotropic_small", f"{_ISO}dinat_isotropic_small_in1k_224.pth", "80.8"),
    _classifier("dinat_isotropic_base", f"{_ISO}dinat_isotropic_base_in1k_224.pth", "82.1"),
    _classifier("vitrpb_small", f"{_ISO}vitrpb_small_in1k_224.pth", "81.2"),
    _classifier("vitrpb_base", f"{_ISO}vitrpb_base_in1k_224.pth", "82.5"),
    _pretrained("dinat_large_21k", "dinat_large_in22k_224"),
    _pretrained("dinat_large_21k_11x11", "dinat_large_in22k_224_11x11interp"),
    _pretrained("dinat_s_large_21k", "dinat_s_large_in22k_224"),
)

# Depth of the third level, over which downstream dilations repeat.
_THIRD = {"mini": 6, "tiny": 18, "small": 18, "base": 18, "large": 18}
_S_THIRD = {"tiny": 6, "small": 18, "base": 18, "large": 18}
_Dilations = tuple[tuple[int, ...], ...]


def _coco_dilations(model: str) -> _Dilations:
    size = model.rpartition("_")[2]
    if model.startswith("dinat_s_"):
        return ((1, 28), (1, 14), (1, 3, 1, 5, 1, 7) * (_S_THIRD[size] // 6), (1, 3))
    third = (1, 3, 1, 5, 1, 7) * (_THIRD[size] // 6)
    return ((1, 28, 1), (1, 7, 1, 14), third, (1, 3, 1, 3, 1))


_ADE_LARGE = (1, 2, 1, 3, 1, 4, 1, 5, 1, 2, 1, 3, 1, 4, 1, 5, 1, 5)


def _ade20k_dilations(model: str) -> _Dilations:
    size = model.rpartition("_")[2]
    if model.startswith("dinat_s_"):
        if size == "large":
            return ((1, 20), (1, 10), _ADE_LARGE, (1, 2))
        return ((1, 16), (1, 8), (1, 2, 1, 3, 1, 4) * (_S_THIRD[size] // 6), (1, 2))
    if size == "large":
        return ((1, 20, 1), (1, 5, 1, 10), _ADE_LARGE, (1, 2, 1, 2, 1))
    third = (1, 2, 1, 3, 1, 4) * (_THIRD[size] // 6)
    return ((1, 16, 1), (1, 4, 1, 8), third, (1, 2, 1, 2, 1))


def _detector(model: str, kind: str, accuracy: str) -> Published:
    is_nat = model.startswith("nat_")
    names = {"maskrcnn": "maskrcnn", "cascade": "cascademaskrcnn" if is_nat else "cascadedmaskrcnn"}
    folder = "nat/checkpoints/DET/" if is_nat else "dinat/checkpoints/coco/"
    file = f"{model}_{names[kind]}" if is_nat else f"{names[kind]}_{model}"
    task = {"maskrcnn": "COCO, Mask R-CNN", "cascade": "COCO, Cascade Mask R-CNN"}[kind]
    dilations = {} if is_nat else {"dilations": _coco_dilations(model)}
    return Published(
        model=model,
        weights=f"coco_{kind}",
        address=f"{_BASE}{folder}{file}.pth",
        task=task,
        resolution="800 to 1333",
        accuracy=f"{accuracy} box / mask AP",
        options={"output_norms": True, **dilations},
    )


def _segmentor(model: str, accuracy: str) -> Published:
    is_nat = model.startswith("nat_")
    path = f"nat/checkpoints/SEG/{model}_upernet" if is_nat else f"{_DINAT_ADE}upernet_{model}"
    dilations = {} if is_nat else {"dilations": _ade20k_dilations(model)}
    return Published(
        model=model,
        weights="ade20k_upernet",
        address=f"{_BASE}{path}.pth",
        task="ADE20K, UPerNet",
        resolution="640" if model.endswith("large") else "512",
        accuracy=f"{accuracy} mIoU / multi-scale",
        options={"output_norms": True, **dilations},
    )


_DINAT_ADE = "dinat/checkpoints/ade20k/"

_DETECTORS = (
    _detector("nat_mini", "maskrcnn", "46.5 / 41.7"),
    _detector("nat_tiny", "maskrcnn", "47.7 / 42.6"),
    _detector("nat_small", "maskrcnn", "48.4 / 43.2"),
    _detector("nat_mini", "cascade", "50.3 / 43.6"),
    _detector("nat_tiny", "cascade", "51.4 / 44.5"),
    _detector("nat_small", "cascade", "52.0 / 44.9"),
    _detector("nat_base", "cascade", "52.3 / 45.1"),
    _detector("dinat_mini", "maskrcnn", "47.2 / 42.5"),
    _detector("dinat_tiny", "maskrcnn", "48.6 / 43.5"),
    _detector("dinat_small", "maskrcnn", "49.3 / 44.0"),
    _detector("dinat_mini", "cascade", "51.2 / 44.4"),
    _detector("dinat_tiny", "cascade", "52.2 / 45.1"),
    _detector("dinat_small", "cascade", "52.9 / 45.8"),
    _detector("dinat_base", "cascade", "53.4 / 46.2"),
    _detector("dinat_large", "cascade", "55.3 / 47.8"),
    _detector("dinat_s_tiny", "maskrcnn", "46.6 / 42.1"),
    _detector("dinat_s_small", "maskrcnn", "48.6 / 43.5"),
    _detector("dinat_s_tiny", "cascade", "51.0 / 44.1"),
    _detector("dinat_s_small", "cascade", "52.3 / 45.2"),
    _detector("dinat_s_base", "cascade", "52.6 / 45.3"),
    _detector("dinat_s_large", "cascade", "54.8 / 47.2"),
)

_SEGMENTORS = (
    _segmentor("nat_mini", "45.1 / 46.4"),
    _segmentor("nat_tiny", "47.1 / 48.4"),
    _segmentor("nat_small", "48.0 / 49.5"),
    _segmentor("nat_base", "48.5 / 49.7"),
    _segmentor("dinat_mini", "45.8 / 47.2"),
    _segmentor("dinat_tiny", "47.8 / 48.8"),
    _segmentor("dinat_small", "48.9 / 49.9"),
    _segmentor("dinat_base", "49.6 / 50.4"),
    _segmentor("dinat_large", "54.0 / 54.9"),
    _segmentor("dinat_s_tiny", "46.0 / 47.4"),
    _segmentor("dinat_s_small", "48.6 / 49.9"),
    _segmentor("dinat_s_base", "49.4 / 50.2"),
    _segmentor("dinat_s_large", "53.4 / 54.6"),
)

_M2F_OPTIONS = {
    "output_norms": True,
    "kernel_size": 11,
    "dilations": (
        (1, 14, 1),
        (1, 4, 1, 7),
        (1, 2, 1, 3, 1, 2, 1, 3, 1, 2, 1, 3, 1, 2, 1, 3, 1, 3),
        (1, 1, 1, 1, 1),
    ),
}


def _mask2former(data: str, kind: str, resolution: str, accuracy: str) -> Published:
    names = {"coco": "COCO", "ade20k": "ADE20K", "cityscapes": "Cityscapes"}
    file = f"mask2former_dinat_large_{data}_{kind}.pth"
    return Published(
        model="dinat_large",
        weights=f"{data}_mask2former_{kind}",
        address=f"{_BASE}dinat/checkpoints/m2f/{file}",
        task=f"{names[data]}, Mask2Former, {kind}",
        resolution=resolution,
        accuracy=accuracy,
        options=_M2F_OPTIONS,
    )


_MASK2FORMER = (
    _mask2former("coco", "instance", "1024", "50.8 AP"),
    _mask2former("coco", "panoptic", "1024", "58.5 PQ / 49.2 AP / 68.3 mIoU"),
    _mask2former("ade20k", "instance", "640", "35.4 AP"),
    _mask2former("ade20k", "semantic", "640", "58.1 mIoU, multi-scale"),
    _mask2former("ade20k", "panoptic", "640", "49.4 PQ / 35.0 AP / 56.3 mIoU"),
    _mask2former("cityscapes", "instance", "512 x 1024", "45.1 AP"),
    _mask2former("cityscapes", "semantic", "512 x 1024", "84.5 mIoU, multi-scale"),
    _mask2former("cityscapes", "panoptic", "512 x 1024", "67.2 PQ / 44.5 AP / 83.4 mIoU"),
)

PUBLISHED = (*_CLASSIFIERS, *_DETECTORS, *_SEGMENTORS, *_MASK2FORMER)


def published_weights(model: str) -> list[str]:
    """Names of a model's published weights.

    >>> from natjax.weights import published_weights
    >>> published_weights("nat_tiny")
    ['imagenet1k', 'coco_maskrcnn', 'coco_cascade', 'ade20k_upernet']
    """
    return [entry.weights for entry in PUBLISHED if entry.model == model]


def find_published(models: list[str], weights: str) -> Published:
    """The entry of published weights.

    Args:
      models: names of the models that they may be for.
      weights: what they are called.

    Raises:
      WeightsError: there is none, or one for each of several models.
    """
    found = [entry for entry in PUBLISHED if entry.model in models and entry.weights == weights]
    if len(found) == 1:
        return found[0]
    if found:
        names = " and ".join(entry.model for entry in found)
        raise WeightsError(f"weights {weights!r} are published for {names}; pass the file or URL")
    known = {entry.weights: None for entry in PUBLISHED if entry.model in models}
    have = f"has {', '.join(known)}" if known else "has none; pass a file or URL"
    raise WeightsError(f"no published weights {weights!r}: {' or '.join(models)} {have}")
