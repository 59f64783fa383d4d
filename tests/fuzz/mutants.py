"""Seeded mutations of JSON values, of JSON text and of bytes: the same generator gives the same mutant."""

import copy
import json
from random import Random
from typing import Any

DEEP, LONG, HUGE = "@deep@", "@long@", "@huge@"
"""Stand-ins for what json.dumps cannot write, or not quickly; replaced in the text."""

_EXPANSIONS = {
    DEEP: b"[" * 100_000 + b"]" * 100_000,
    LONG: b"[" + b"[]," * 400_000 + b"[]]",
    HUGE: b"1" + b"0" * 4_200,
}
_NUMBERS = (
    *(0, 1, -1, 2, 3, 7, 64, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64, 10**9, 10**12, 10**30),
    *(0.5, -0.0, 1e-300, 1e300, 1e308, float("nan"), float("inf"), float("-inf")),
)
_TEXTS = (
    "",
    "a",
    "0",
    "\ud800",
    "\0",
    "\n\r\x1b[31m",
    "x" * 100_000,
    "-1",
    "</s>",
    "\N{GRINNING FACE}",
    DEEP,
    HUGE,
    LONG,
)
_OTHERS: tuple[Any, ...] = (
    None,
    True,
    False,
    [],
    {},
    [[]],
    [None],
    [0],
    ["a"],
    {"": None},
    {"a": {"b": []}},
    [1] * 1000,
)


def hostile(draw: Random) -> Any:
    """Return a value that hardly any field expects."""
    kind = draw.random()
    if kind < 0.45:
        return draw.choice(_NUMBERS)
    return copy.deepcopy(draw.choice(_TEXTS if kind < 0.7 else _OTHERS))


def mutate(value: Any, draw: Random) -> Any:
    """Return a copy of a JSON value, changed in one to three places."""
    changed = copy.deepcopy(value)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        if isinstance(changed, dict | list):
            changed = _mutate_once(changed, draw)
    return changed


def _mutate_once(value: Any, draw: Random) -> Any:
    places = _places(value)
    if not places or draw.random() < 0.02:
        return hostile(draw)
    holder, key = draw.choice(places)
    action = draw.random()
    if action < 0.15:
        del holder[key]
    elif action < 0.25:
        extra = hostile(draw)
        if isinstance(holder, dict):
            holder[draw.choice((str(key) + "_", "", "a"))] = extra
        else:
            holder.insert(key, extra)
    elif action < 0.4 and isinstance(holder[key], int | float) and not isinstance(holder[key], bool):
        holder[key] = draw.choice((-holder[key], holder[key] + 1, holder[key] * 2, holder[key] * 10**6, 1 / 3))
    elif action < 0.45:
        holder[key] = copy.deepcopy(draw.choice(places)[0])
    else:
        holder[key] = hostile(draw)
    return value


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Return the container and key of values below `value`; every key of large containers would drown the others."""
    found: list[tuple[Any, Any]] = []
    queue = [value]
    while queue and len(found) < 5000:
        holder = queue.pop(0)
        keys: list[Any] = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        if len(keys) > 40:
            keys = keys[:10] + keys[-10:]
        found += [(holder, key) for key in keys]
        queue += [holder[key] for key in keys if isinstance(holder[key], dict | list)]
    return found


def to_json(value: Any) -> bytes:
    """Return JSON text, with NaN and infinities as Python writes them, lone surrogates as escapes."""
    data = json.dumps(value).encode()
    for stand_in, expansion in _EXPANSIONS.items():
        data = data.replace(f'"{stand_in}"'.encode(), expansion)
    return data


def mutate_bytes(data: bytes, draw: Random) -> bytes:
    """Return damaged bytes: cut, flipped, doubled, overwritten, or something else altogether."""
    at = draw.randrange(len(data) + 1)
    kind = draw.randrange(9)
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + draw.randbytes(draw.choice((1, 2, 4, 8))) + data[at:]
    if kind == 2:
        number = draw.choice((0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1, 10**9))
        return data[:at] + number.to_bytes(8, "little") + data[at + 8 :]
    if kind == 3:
        return draw.choice((b"", b"\0" * 64, b"[]", b"{}", b"null", b"\xff\xfe{}", b"\xef\xbb\xbf" + data, data * 2))
    if kind == 4:
        return data[:at] + data[draw.randrange(len(data) + 1) :]
    if kind == 5:
        return draw.choice(list(_EXPANSIONS.values()))
    flipped = bytearray(data)
    for _ in range(draw.choice((1, 1, 3, 20))):
        if flipped:
            flipped[draw.randrange(len(flipped))] ^= 1 << draw.randrange(8)
    return bytes(flipped)
