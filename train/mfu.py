"""Model FLOPs utilisation: what share of the devices' peak goes into the model's own arithmetic."""

import dataclasses
import re

from natjax.models import model_config
from natjax.summary import count_flops
from natjax.train.config import TrainConfig
from natjax.train.datasets import DatasetSpec

# Dense bfloat16 FLOP/s of a device as JAX counts them, from the makers' data sheets, in units of
# 1e12. A key is a part of `jax.Device.device_kind`, whole words; the longest that fits counts.
_PEAKS = {
    "A100": 312.0,
    "A30": 165.0,
    "A40": 149.7,
    "A10": 125.0,
    "A10G": 70.0,
    "L4": 121.0,
    "L40": 181.0,
    "L40S": 362.0,
    "H100": 989.4,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.5,
    "GH200": 989.4,
    "H200": 989.4,
    "H200 NVL": 835.5,
    "B200": 2250.0,
    "RTX 3090": 71.0,
    "RTX 4090": 165.2,
    "RTX A6000": 154.8,
    "RTX 6000 Ada": 364.2,
    "TPU v2": 22.5,
    "TPU v3": 61.5,
    "TPU v4": 275.0,
    "TPU v5": 459.0,
    "TPU v5p": 459.0,
    "TPU v5 lite": 197.0,
    "TPU v5e": 197.0,
    "TPU v6 lite": 918.0,
    "TPU v6e": 918.0,
}


def peak_flops(kind: str) -> float | None:
    """Return the dense bfloat16 FLOP/s of a device, or None where it is not known.

    Args:
      kind: `jax.Device.device_kind`.

    >>> peak_flops("NVIDIA A100-SXM4-80GB")
    312000000000000.0
    >>> peak_flops("cpu") is None
    True
    """
    if re.search(r"\bMIG\b", kind):
        return None  # a slice of a GPU, which has a part of the peak
    fitting = [key for key in _PEAKS if re.search(rf"\b{re.escape(key)}\b", kind)]
    return 1e12 * _PEAKS[max(fitting, key=len)] if fitting else None


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
