"""The one error of reading and downloading weights."""

from typing import Any


class WeightsError(ValueError):
    """A file or download that cannot be used; the message names it, the rule and the value."""


def show(value: Any) -> str:
    """Return a short form of a value from an untrusted file, for a message.

    Containers are named by type only: printing a small file's nested lists can take for ever.
    `repr` escapes what would control a terminal.

    Args:
      value: Anything.
    """
    if isinstance(value, str | int | float | bytes | None):
        text = repr(value)
        return text if len(text) <= 80 else f"{text[:77]}..."
    if isinstance(value, tuple) and all(type(entry) is int for entry in value[:9]):
        inner = ", ".join(map(str, value[:8]))
        return f"({inner}{', ...' if len(value) > 8 else ''})"
    return f"a {type(value).__name__}"
