"""A JSON object that was cut off, as far as it goes."""

from typing import Any

import msgspec

_CLOSERS = {"{": "}", "[": "]"}


def completed_object(text: str) -> dict[str, Any]:
    """Return the JSON object that begins with `text`, less the members and entries that are not complete.

    What is no beginning of an object gives an empty one.
    """
    whole = _object(text)
    return _object(_closed(text)) or {} if whole is None else whole


def _closed(text: str) -> str:
    """Return `text` up to the last comma or bracket outside of strings, with what closes it there."""
    end, open_brackets = 0, list[str]()
    is_string = is_escaped = False
    for index, char in enumerate(text):
        if is_string:
            is_string = is_escaped or char != '"'
            is_escaped = char == "\\" and not is_escaped
        elif char == '"':
            is_string = True
        elif char == ",":
            end = index
        elif char in "{[":
            open_brackets.append(char)
            end = index + 1
        elif char in "}]":
            del open_brackets[-1:]
            end = index + 1
    return text[:end] + "".join(_CLOSERS[bracket] for bracket in reversed(open_brackets))


def _object(text: str) -> dict[str, Any] | None:
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
