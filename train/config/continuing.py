"""What becomes of every setting when a run is continued with other values.

A run may not change its mathematics unnoticed. So a setting is fixed unless a table says that it
may change; every change that is accepted is told in a line. The tables are class attributes of the
configurations, `RunConfig.CONTINUING` and those of tasks. They are keyed by the names of settings;
the name of a section, such as ``"optimizer"``, stands for all of its settings that have no entry of
their own.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Rule:
    """What happens when a setting differs.

    Attributes:
      accepted: Whether the run goes on.
      told: Whether a line says so.
      effect: What the line says besides both values.
    """

    accepted: bool
    told: bool = True
    effect: str = ""


# It decides what is computed: the run is refused.
FIXED = Rule(accepted=False)
# It decides where, how fast or how often; the result is the same, or equal up to rounding.
FREE = Rule(accepted=True)
ROUNDING = Rule(accepted=True, effect="equal up to rounding")
# It says where this process is, or where it finds something: nothing of the run.
PLACE = Rule(accepted=True, told=False)

Rules = Mapping[str, Rule]


@dataclasses.dataclass(frozen=True)
class Differences:
    """How two configurations differ.

    Attributes:
      refused: Settings that forbid to continue, as ``"seed: 0 -> 3"``.
      told: Others that a line is due for, as ``"accumulate: 1 -> 2 (equal up to rounding)"``.
    """

    refused: list[str]
    told: list[str]


def find_rule(name: str, rules: Rules) -> Rule | None:
    """Return the rule of a setting, or of the innermost section that has one; None: not classified.

    Args:
      name: Such as ``"model.remat"``.
      rules: By the names of settings and sections.
    """
    while name not in rules:
        name, dot, _ = name.rpartition(".")
        if not dot:
            return None
    return rules[name]


def compare(old: dict[str, Any], new: dict[str, Any], rules: Rules) -> Differences:
    """Compare two configurations.

    Args:
      old: As `natjax.train.config.serialization.to_json` has it.
      new: The same.
      rules: What is not in them is fixed.
    """
    before, after = flat(old), flat(new)
    refused, told = [], []
    for name in {**before, **after}:
        if before.get(name) == after.get(name):
            continue
        text = f"{name}: {before.get(name)} -> {after.get(name)}"
        rule = find_rule(name, rules) or FIXED
        if not rule.accepted:
            refused.append(text)
        elif rule.told:
            told.append(f"{text} ({rule.effect})" if rule.effect else text)
    return Differences(refused, told)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings by their full names, such as ``"mesh.data"``."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found
