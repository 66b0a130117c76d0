"""How fast a run is, what share of the devices' peak that is (MFU), and what memory it takes.

Model FLOPs utilisation is the share of the peak that goes into the model's own arithmetic.
"""

import contextlib
import dataclasses
import re
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

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


def utilisation(flops: int, rate: float, kind: str, count: int) -> float | None:
    """Return the share of the peak, or None where the peak or the speed is not known.

    A backward pass counts as two forward passes, a multiply-add as two FLOPs; what is computed a
    second time (`model.remat`) does not count.

    Args:
      flops: Multiply-adds of one example's forward pass.
      rate: Examples trained on a second, over all devices.
      kind: `jax.Device.device_kind` of the devices.
      count: Number of devices.
    """
    peak = peak_flops(kind)
    if peak is None or not rate:
        return None
    return 6 * flops * rate / (peak * count)


def peak_memory(devices: Iterable[Any]) -> int | None:
    """Return the most bytes that one of the devices has had in use since this process started.

    Args:
      devices: Of JAX, of this process.

    Returns:
      None where no backend tells, as on CPUs.
    """
    stats = [device.memory_stats() or {} for device in devices]
    peaks = [found["peak_bytes_in_use"] for found in stats if "peak_bytes_in_use" in found]
    return max(peaks, default=None)


@dataclasses.dataclass(frozen=True)
class Interval:
    """How fast some steps were.

    Attributes:
      rate: Examples a second, evaluations and checkpoints left out.
      data_wait: Share of that time in which the loop waited for a batch. Devices may still have had
        a step or two to do meanwhile, so they were idle for at most this share.
    """

    rate: float
    data_wait: float


class Throughput:
    """How fast a run is, not counting its first interval, which compiles.

    Args of the constructor: examples a step, and the clock.
    """

    def __init__(self, batch_size: int, clock: Callable[[], float] = time.monotonic):
        self._batch_size, self._clock = batch_size, clock
        # Where the interval began: step and time; None before the first has ended.
        self._began: tuple[int, float] | None = None
        self._paused = self._waited = 0.0
        # Steps and seconds of all intervals that have ended.
        self._steps, self._seconds = 0, 0.0

    def exclude(self, seconds: float) -> None:
        """Leave out time that was not spent on training steps."""
        self._paused += seconds

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Count what is done inside as waiting for data."""
        began = self._clock()
        yield
        self._waited += self._clock() - began

    def end_interval(self, step: int) -> Interval | None:
        """Return how fast the steps since the last call were, None at the first; begin anew.

        Args:
          step: Steps done.
        """
        now, began = self._clock(), self._began
        paused, waited = self._paused, self._waited
        self._began, self._paused, self._waited = (step, now), 0.0, 0.0
        if began is None or step <= began[0]:
            return None
        steps, seconds = step - began[0], max(now - began[1] - paused, 1e-9)
        self._steps, self._seconds = self._steps + steps, self._seconds + seconds
        return Interval(steps * self._batch_size / seconds, min(waited / seconds, 1.0))

    def seconds_left(self, step: int, total: int) -> float | None:
        """Return what the steps left will take, without evaluations; None as long as nobody knows.

        It is reckoned with the mean of all intervals, as that of the last one jumps.
        """
        return (total - step) * self._seconds / self._steps if self._steps else None
