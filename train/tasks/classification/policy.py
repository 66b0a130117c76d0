"""The text form of a RandAugment policy, such as ``rand-m9-mstd0.5-inc1``."""

import dataclasses
import re

from natjax.train.errors import UserError

MAX_MAGNITUDE = 10.0
_MOST_STD = 100
_FORM = "rand-mM-mstdS-incI-nN"


@dataclasses.dataclass(frozen=True)
class Policy:
    """RandAugment (Cubuk et al., 2020) as timm has it.

    Attributes:
      magnitude: Mean magnitude, of 10.
      std: Standard deviation of the magnitude, drawn for each operation; clipped to [0, 10].
      layers: Operations drawn for each image.
      prob: Chance that a drawn operation is done.
    """

    magnitude: float
    std: float
    layers: int
    prob: float = 0.5


def parse_policy(text: str) -> Policy:
    """Return the policy that a text says.

    Args:
      text: ``rand``, then joined by hyphens: ``m`` and the magnitude, ``mstd`` and its standard
        deviation (default 0), ``inc1`` (needed), ``n`` and the number of operations (default 2).

    Raises:
      UserError: it says something else; what is known but not supported is named.
    """
    kind, *parts = text.split("-")
    if kind != "rand":
        raise _error(text, f"only policies rand-... are supported, not {kind!r}")
    found: dict[str, float] = {"mstd": 0.0, "n": 2}
    for part in parts:
        match = re.fullmatch(r"([a-z]+)(\d+(?:\.\d+)?)", part)
        if match is None or match[1] not in ("m", "mstd", "inc", "n"):
            raise _error(text, f"{part!r} is not supported")
        found[match[1]] = float(match[2])
    return _checked(text, found)


def _checked(text: str, found: dict[str, float]) -> Policy:
    if not 0 <= found.get("m", -1) <= MAX_MAGNITUDE:
        raise _error(text, "the magnitude, such as m9, must be there and in [0, 10]")
    if found.get("inc") != 1:
        raise _error(text, "only the increasing operations are supported: add inc1")
    if found["mstd"] > _MOST_STD:
        raise _error(text, f"mstd must be at most {_MOST_STD}: above, timm draws evenly instead")
    if found["n"] < 1 or found["n"] % 1:
        raise _error(text, "n must be a whole number from 1")
    return Policy(magnitude=found["m"], std=found["mstd"], layers=int(found["n"]))


def _error(text: str, reason: str) -> UserError:
    return UserError(f"augment.rand_augment must be like {_FORM}, got {text!r}: {reason}")
