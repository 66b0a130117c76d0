"""Lists in a large JSON text, entry by entry, so that never more than one is there as objects."""

import collections
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from natjax.train.errors import UserError

_SPACE = re.compile(r"[ \t\r\n]*")
_END = object()


def find_lists(text: str, names: Sequence[str], source: str) -> dict[str, int]:
    """Return where the lists under some names of the outermost object begin.

    Args:
      text: The JSON.
      names: Of the lists; the last one of a name counts, and what is no list does not.
      source: What to call the text in messages.

    Raises:
      UserError: it is no JSON object; the message says where.
    """
    found: dict[str, int] = {}
    at = _expect(text, 0, "{", source)
    while text[at : at + 1] != "}":
        if text[at : at + 1] == ",":
            at = _after_space(text, at + 1)
        name, at = _value(text, at, source)
        at = _expect(text, at, ":", source)
        if name in names and text[at : at + 1] == "[":
            found[name] = at
            at = collections.deque(_elements(text, at, source), maxlen=1)[0][1]
        else:
            _, at = _value(text, at, source)
        at = _after_space(text, at)
        if text[at : at + 1] not in (",", "}"):
            _expect(text, at, ",", source)
    return found


def entries(text: str, start: int, source: str) -> Iterator[Any]:
    """Iterate over the entries of a list.

    Args:
      text: The JSON.
      start: Where the list begins, as `find_lists` says.
      source: What to call the text in messages.

    Raises:
      UserError: it is no JSON; the message says where.
    """
    return (value for value, _ in _elements(text, start, source) if value is not _END)


def _elements(text: str, at: int, source: str) -> Iterator[tuple[Any, int]]:
    """Elements of a list with where each ends; at last `_END`, with where the list ends."""
    at = _expect(text, at, "[", source)
    if text[at : at + 1] == "]":
        yield _END, at + 1
        return
    while True:
        value, at = _value(text, at, source)
        yield value, at
        at = _after_space(text, at)
        if text[at : at + 1] == "]":
            yield _END, at + 1
            return
        at = _expect(text, at, ",", source)


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    assert found is not None
    return found.end()


def _expect(text: str, at: int, sign: str, source: str) -> int:
    at = _after_space(text, at)
    if text[at : at + 1] != sign:
        got = ascii(text[at : at + 1]) if at < len(text) else "its end"
        raise UserError(f"{source} is no JSON object: character {at} must be {sign}, got {got}")
    return _after_space(text, at + 1)


_DECODE = json.JSONDecoder().raw_decode


def _value(text: str, at: int, source: str) -> tuple[Any, int]:
    try:
        return _DECODE(text, at)
    except (ValueError, RecursionError) as error:  # numbers too long, lists too deep
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "a value cannot be read"
        raise UserError(f"{source} is no JSON: {reason} at character {at}") from error
