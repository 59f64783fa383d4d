"""Values of settings as text: what a flag, a variable or a line of a file says becomes a value within its bounds."""

import decimal
import operator
import re
from typing import Any

from msgspec import inspect

from quartet.settings.fields import bare_type
from quartet.wire.errors import ConfigError

FACTORS = {
    "": 1,
    "k": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "Ki": 1 << 10,
    "Mi": 1 << 20,
    "Gi": 1 << 30,
    "Ti": 1 << 40,
}
_SCALED = re.compile(r"([^A-Za-z]+(?:[eE][+-]?\d+)?)([A-Za-z]*)")
_EXACT = decimal.Context(prec=80, traps=[decimal.Inexact, decimal.InvalidOperation, decimal.Overflow])
_TOO_MUCH = 1 << 64


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
    try:
        value: int | float = whole_number(text) if isinstance(kind, inspect.IntType) else _number(text)
    except ValueError as error:
        raise ConfigError(f"{origin}: {text!r} is not {error}") from None
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


def whole_number(text: Any) -> int:
    """Return an integer of text such as 4096, 32k, 1.5M, 1Mi or 1e6.

    k, M, G and T are powers of 1000, Ki, Mi, Gi and Ti of 1024. Raises ValueError, whose message goes on after "is
    not".
    """
    parts = _SCALED.fullmatch(str(text).strip())
    if parts is None:
        raise ValueError("an integer")
    number, suffix = parts.groups()
    if suffix not in FACTORS:
        hint = ": write k for 1000 or Ki for 1024" if suffix.upper() in ("K", "KB") else ""
        raise ValueError(f"an integer, or one with k, M, G, T, Ki, Mi, Gi or Ti{hint}")
    try:
        value = _EXACT.multiply(decimal.Decimal(number), decimal.Decimal(FACTORS[suffix]))
    except decimal.DecimalException:
        raise ValueError("an integer") from None
    if value and value.adjusted() > 40:
        return _TOO_MUCH
    if value != value.to_integral_value():
        raise ValueError("an integer")
    return int(value)


def _number(text: Any) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError("a number") from None
