"""Records with their images decoded; what cannot be decoded never stops a run of many days.

In training, the next record that can be read takes the place of one that cannot: which one depends
on the data set alone, so a batch stays a function of (seed, step). In evaluation it is left out,
and named, so that nobody takes the accuracy for that of all images. Each is named once a process.
Many unreadable images are another matter: a wrong folder or a broken disk, and an error.
"""

import dataclasses
import threading
import warnings
from collections.abc import Callable
from typing import Any

from natjax.train import console
from natjax.train.data.datasets import Source
from natjax.train.data.images import decode
from natjax.train.errors import TrainingError, UserError

_IN_A_ROW = 16
_SHARE = 0.01
_FEW = 16  # of a small data set


class UnreadableError(TrainingError):
    """An image, or too many of them, cannot be read."""


@dataclasses.dataclass
class _Seen:
    """What could not be read by this process so far."""

    lock: Any = dataclasses.field(default_factory=threading.Lock)
    bad: set[int] = dataclasses.field(default_factory=set)

    def __post_init__(self) -> None:
        # Of Pillow, about odd metadata; set here, as filters are no matter of single threads.
        warnings.filterwarnings("ignore", module="PIL")

    def __reduce__(self) -> tuple[type["_Seen"], tuple[()]]:
        return _Seen, ()  # every process counts its own


@dataclasses.dataclass(frozen=True)
class DecodeImage:
    """Decodes the ``image`` of a record; a class, since worker processes receive it pickled.

    Attributes:
      channels: 1 (gray) or 3 (RGB).
    """

    channels: int

    def __call__(self, record: dict[str, Any], name: str) -> dict[str, Any]:
        """Return the record with its image decoded."""
        del name
        return {**record, "image": decode(record["image"], self.channels)}


@dataclasses.dataclass(frozen=True)
class Readable:
    """Records by index, decoded.

    Attributes:
      source: The records.
      decode: ``(record, what to call it) -> decoded record``. What it raises says that a record is
        damaged and can be passed over, but for a `UserError`, which goes to the user.
      split: What to call the source in messages.
      warns: Whether this process, and its workers, name what cannot be read.
    """

    source: Source
    decode: Callable[[dict[str, Any], str], dict[str, Any]]
    split: str
    warns: bool = dataclasses.field(default_factory=console.prints)
    _seen: _Seen = dataclasses.field(default_factory=_Seen, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return a record, or the next that can be read.

        Raises:
          UnreadableError: more than 16 in a row, or more than 1 % of all (and 16), are unreadable.
        """
        count = len(self)
        for place in range(index, index + min(_IN_A_ROW, count)):
            record = self.get(place % count)
            if record is not None:
                return record
        raise UnreadableError(
            f"{min(_IN_A_ROW, count)} images in a row of {self.split} cannot be read, from"
            f" {self.name(index)} on; check the data set"
        )

    def get(self, index: int) -> dict[str, Any] | None:
        """Return a record, or None if it cannot be read."""
        try:
            return self.decode(self.source[index], self.name(index))
        except UserError:
            raise
        except Exception as error:  # decoders of damaged files, and disks, raise nearly anything
            self._count(index, error)
            return None

    def name(self, index: int) -> str:
        """Return what to call a record in a message."""
        name = getattr(self.source, "name", None)
        return f"{self.split} image {index}" if name is None else name(index)

    def _count(self, index: int, error: Exception) -> None:
        with self._seen.lock:
            if index in self._seen.bad:
                return
            self._seen.bad.add(index)
            bad = len(self._seen.bad)
        if self.warns:
            console.warn(f"cannot read {self.name(index)}: {error or type(error).__name__}")
        if bad > max(_FEW, _SHARE * len(self)):
            raise UnreadableError(
                f"{bad} of {len(self):,} images of {self.split} cannot be read; check the data set"
            ) from error
