"""The one error of reading, writing and downloading weights, and how strangers' text is shown."""

from typing import Any

_LONGEST_MESSAGE = 8000


class WeightsError(ValueError):
    """A file or download that cannot be used; the message names it, the rule and the value.

    Messages quote files and servers of strangers. Whatever reaches one, it is harmless to a
    terminal: control characters are escaped, and its length is bounded.

    Args:
      message: The text; line breaks are kept.
    """

    def __init__(self, message: str):
        shown = message[:_LONGEST_MESSAGE]
        if not shown.replace("\n", "").isprintable():
            shown = "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in shown)
        super().__init__(shown if len(message) <= _LONGEST_MESSAGE else f"{shown}...")


def show(value: Any, *, bare: bool = False, longest: int = 80) -> str:
    """Return a short form of a value from an untrusted file or server, for a message.

    Containers are named by type only: printing a small file's nested lists can take for ever.
    `repr` escapes what would control a terminal.

    Args:
      value: Anything.
      bare: Leave out the quotes of text that can be printed as it is, such as a key in a list.
      longest: Characters of text at most.
    """
    if isinstance(value, str | bytes):
        text = value[: longest + 1]  # before it is escaped, which takes time for what is long
        plain = bare and isinstance(text, str) and text.isprintable() and text
        text = text if plain else repr(text)
        return text if len(text) <= longest else f"{text[: longest - 3]}..."
    if isinstance(value, int | float | None):
        return _number(value)
    if isinstance(value, tuple) and all(type(entry) is int for entry in value[:9]):
        inner = ", ".join(map(_number, value[:8]))
        return f"({inner}{', ...' if len(value) > 8 else ''})"
    return f"a {type(value).__name__}"


def _number(value: int | float | None) -> str:
    if isinstance(value, int) and value.bit_length() > 1000:
        return f"an integer of {value.bit_length()} bits"  # Python refuses to print the longest
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def show_some(names: list[str], most: int = 20) -> list[str]:
    """Return the first names of a list in their short form, and how many more there are.

    Args:
      names: From an untrusted file.
      most: How many to show.
    """
    shown = [show(name, bare=True) for name in names[:most]]
    return [*shown, f"... and {len(names) - most} more"] if len(names) > most else shown
