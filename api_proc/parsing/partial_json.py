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
    """Return `text` up to its last complete member or entry, with what closes it."""
    end, closers, stack = 0, "", [""]
    is_string = is_escaped = False
    for index, char in enumerate(text):
        if is_string:
            is_string = is_escaped or char != '"'
            is_escaped = char == "\\" and not is_escaped
        elif char == '"':
            is_string = True
        elif char == ",":
            end, closers = index, stack[-1]
        elif char in _CLOSERS:
            stack.append(_CLOSERS[char] + stack[-1])
            end, closers = index + 1, stack[-1]
        elif char in "}]" and len(stack) > 1:
            stack.pop()
            end, closers = index + 1, stack[-1]
    return text[:end] + closers


def _object(text: str) -> dict[str, Any] | None:
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
