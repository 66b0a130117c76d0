"""Model FLOPs utilisation: what share of the devices' peak goes into the model's own arithmetic."""

import dataclasses
import re

from natjax.create import model_config
from natjax.summary import count_flops
from natjax.train.config.settings import TrainConfig
from natjax.train.data.datasets import DatasetSpec

# Dense bfloat16 FLOP/s of a device as JAX counts them, with sums in float32 and no sparsity, in
# units of 1e12. A key is a part of `jax.Device.device_kind`, whole words; the longest that fits
# counts. None: a device that a shorter key would fit, but whose peak no source here gives.
#
# Sources that were read: JAX's `tpu_info` (which TPUs are two devices a chip: v2, v3 and 7x; v4 and
# v5p are one, a megacore) and its peak of v2; the peaks a chip of Google's page "TPU7x (Ironwood)",
# which has v5p and v6e too; the tables of torchtitan, Lightning, Marin (Levanter), and of verl in a
# copy. They mostly quote NVIDIA's data sheets, halving what those give with 2:4 sparsity (the sheet
# of the H100 PCIe is of 2022); for B200 to GB300 the Blackwell Architecture Technical Brief, for
# GeForce and RTX 6000 Ada the appendices of the GA102, Ada and RTX Blackwell whitepapers, for the
# A10G Baseten's comparison with the A10. Those were not read themselves.
_PEAKS = {
    "A100": 312.0,
    "A800": 312.0,
    "A30": 165.0,
    "A40": 149.7,
    "A10": 125.0,
    "A10G": 70.0,
    "L4": 121.0,
    "L20": 119.5,
    "L40": 181.0,
    "L40S": 362.0,
    "H100": 989.4,
    "H100 PCIe": 756.0,
    "H100 80GB HBM2e": 756.0,  # the PCIe card by another name
    "H100 NVL": 835.5,
    "H800": 989.4,
    "H800 PCIe": None,
    "H20": 148.0,
    "GH200": 989.4,
    "H200": 989.4,
    "H200 NVL": 835.5,
    "B200": 2250.0,
    "B300": 2250.0,
    "GB200": 2500.0,
    "GB300": 2500.0,
    "RTX 3090": 71.0,
    "RTX 3090 Ti": None,
    "RTX 4090": 165.2,
    "RTX 4090 D": None,
    "RTX 5090": 209.5,
    "RTX 5090 D": None,
    "RTX A6000": 154.8,
    "RTX 6000 Ada": 364.2,
    "RTX PRO 6000 Blackwell Workstation Edition": 503.8,
    "RTX PRO 6000 Blackwell Max-Q Workstation Edition": 438.9,
    "TPU v2": 23.0,
    "TPU v3": 61.5,
    "TPU v4": 275.0,
    "TPU v4 lite": None,
    "TPU v5": 459.0,
    "TPU v5p": 459.0,
    "TPU v5 lite": 197.0,
    "TPU v5e": 197.0,
    "TPU v6 lite": 918.0,
    "TPU v6e": 918.0,
    "TPU7x": 1153.5,
}
# Parts of a GPU, and chips of other clocks that share a card's name.
_OTHER = re.compile(r"\b(MIG|GRID|Laptop)\b")


def peak_flops(kind: str) -> float | None:
    """Return the dense bfloat16 FLOP/s of a device, or None where it is not known.

    Args:
      kind: `jax.Device.device_kind`.

    >>> peak_flops("NVIDIA A100-SXM4-80GB")
    312000000000000.0
    >>> peak_flops("cpu") is None
    True
    """
    fitting = [key for key in _PEAKS if re.search(rf"\b{re.escape(key)}\b", kind)]
    peak = _PEAKS[max(fitting, key=len)] if fitting and not _OTHER.search(kind) else None
    return None if peak is None else 1e12 * peak


def image_flops(config: TrainConfig, spec: DatasetSpec) -> int:
    """Return the multiply-adds of one image's forward pass, counted as in `natjax.model_summary`.

    Args:
      config: The run.
      spec: Its data set, for channels and classes.
    """
    model = dataclasses.replace(
        model_config(config.model.name),
        num_classes=len(spec.class_names),
        in_channels=spec.channels,
    )
    return count_flops(model, (config.data.image_size,) * 2)


def utilisation(flops: int, images_per_second: float, kind: str, count: int) -> float | None:
    """Return the share of the peak, or None where the peak or the speed is not known.

    A backward pass counts as two forward passes, a multiply-add as two FLOPs; what is computed a
    second time (`model.remat`) does not count.

    Args:
      flops: Multiply-adds of one image's forward pass.
      images_per_second: Images trained on, over all devices.
      kind: `jax.Device.device_kind` of the devices.
      count: Number of devices.
    """
    peak = peak_flops(kind)
    if peak is None or not images_per_second:
        return None
    return 6 * flops * images_per_second / (peak * count)
