"""Decodes JSON of a model, which may be hostile, within bounds of memory, time and nesting.

Python's decoder makes up to 64 bytes of a byte of input, and what is nested deeply cannot even be printed.
"""

import json
from typing import Any

MAX_BYTES = 128 << 20
FEW_VALUES = 200_000
"""More than any file but those below has."""
MANY_VALUES = 5_000_000
"""More than twice what the tokenizer.json of the largest vocabulary (262,144 tokens, 515,000 merges) holds."""
_MAX_NESTING = 64


def decode_json(data: bytes, max_values: int = FEW_VALUES) -> Any:
    """Return the decoded value; raises ValueError for what is no JSON, or exceeds a bound."""
    check_size(data, max_values)
    try:
        value = json.loads(data)
    except RecursionError:
        raise ValueError(f"it is nested more than {_MAX_NESTING} deep") from None
    _check_nesting(value)
    return value


def check_size(data: bytes, max_values: int = MANY_VALUES) -> None:
    """Raise ValueError for text of more bytes or values than any model needs."""
    if len(data) > MAX_BYTES or data.count(b",") + data.count(b"[") + data.count(b"{") > max_values:
        raise ValueError(f"it has more than {MAX_BYTES >> 20} MiB or {max_values} values")


def _check_nesting(value: Any) -> None:
    level = [value]
    for _ in range(_MAX_NESTING):
        level = [each for held in level for each in _held(held)]
        if not level:
            return
    raise ValueError(f"it is nested more than {_MAX_NESTING} deep")


def _held(value: Any) -> list[Any]:
    """Return the containers directly in a container."""
    held = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [each for each in held if isinstance(each, dict | list)]
