"""Values of settings as text: what a flag, a variable or a line of a file says becomes a value within its bounds."""

import operator
from typing import Any

from msgspec import inspect

from quartet.settings.fields import bare_type
from quartet.wire.errors import ConfigError


def parse_value(kind: inspect.Type, text: Any, origin: str) -> Any:
    """Turn text into a value of the field's type within its bounds; raises ConfigError naming `origin`."""
    kind, _ = bare_type(kind)
    match kind:
        case inspect.BoolType():
            if str(text).lower() not in ("true", "false", "1", "0"):
                raise ConfigError(f"{origin}: {text!r} is neither true nor false")
            return str(text).lower() in ("true", "1")
        case inspect.VarTupleType():
            parts = text if isinstance(text, list) else [part for part in text.split(",") if part]
            return tuple(_parse_text(part, origin) for part in parts)
        case inspect.LiteralType():
            if text not in kind.values:
                raise ConfigError(f"{origin}: {text!r} is not one of {', '.join(map(str, kind.values))}")
            return text
        case inspect.IntType() | inspect.FloatType():
            return _parse_number(kind, text, origin)
        case _:
            return _parse_text(text, origin)


def _parse_text(text: str, origin: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"{origin}: {text!r} is not UTF-8") from None
    return text


def _parse_number(kind: "inspect.IntType | inspect.FloatType", text: Any, origin: str) -> int | float:
    is_int = isinstance(kind, inspect.IntType)
    try:
        value: int | float = int(text) if is_int else float(text)
    except ValueError:
        raise ConfigError(f"{origin}: {text!r} is not {'an integer' if is_int else 'a number'}") from None
    if value != value or value in (float("inf"), float("-inf")):
        raise ConfigError(f"{origin}: {text} is not a finite number")
    if not -(1 << 63) <= value < 1 << 63:
        raise ConfigError(f"{origin}: {text} does not fit into 64 bits")
    bounds = (
        ("at least", kind.ge, operator.ge),
        ("more than", kind.gt, operator.gt),
        ("at most", kind.le, operator.le),
        ("less than", kind.lt, operator.lt),
    )
    for words, bound, holds in bounds:
        if bound is not None and not holds(value, bound):
            raise ConfigError(f"{origin}: {text} is not allowed, it must be {words} {bound}")
    return value
