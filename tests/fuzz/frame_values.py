"""Well-typed but senseless frames: random values for every field by its type, and real frames with other values."""

from random import Random
from typing import Any

import msgspec
from msgspec import inspect

from quartet.wire.frames import pack_ids
from tests.support.wire_samples import INBOXES, kinds

NAMES = (
    "api-0",
    "detok-0",
    "tokenizer-0",
    "scheduler-0",
    "worker-0",
    "api-7",
    "absent-0",
    "",
    "../x",
    "a/b",
    "\0",
    "x" * 300,
)
_INTEGERS = (*range(-2, 9), 63, 64, 255, 2**15, 2**31 - 1, 2**31, -(2**31), 2**32, 2**40, 2**63 - 1, -(2**63))
_FLOATS = (0.0, -1.0, 0.5, 1.0, 1e-300, 1e308, float("nan"), float("inf"), float("-inf"), 3.0)
_TEXTS = (
    "",
    "a",
    "stop",
    "\N{GRINNING FACE}",
    "\0",
    "x" * 1000,
    "ready",
    "length",
    "timeline",
    "trace",
    "config",
    "flush",
)
_BYTES = (b"", b"\0", b"\0" * 4, b"\xff" * 16, b"[]", b"{", b'[{"role": "user", "content": "x"}]', b"x" * 1001)
_NAMES_IN_USE = frozenset(["job", "handle", "generation", "handles", "generations"])
_DESTINATIONS = frozenset(["reply_to", "detok"])
_FEWEST_COLUMNS = frozenset(
    ["ids", "handles", "indices", "generations", "pages", "prompt_ids", "output_ids", "prompt_tail"]
)


class FrameMaker:
    """Draws frames.

    Args:
        draw: the generator.
        integers: numbers that mean something to the receiver, such as epochs.
        is_foreign: whether no frame names a job, handle or generation that is in use; else one may by chance.
    """

    def __init__(self, draw: Random, integers: tuple[int, ...] = (), is_foreign: bool = False) -> None:
        self._draw = draw
        self._integers = integers
        self._is_foreign = is_foreign

    def frame(self, inbound: Any) -> msgspec.Struct:
        """Return a random frame of an inbox."""
        return self._struct(self._draw.choice(kinds(inbound)))

    def changed(self, frame: msgspec.Struct) -> msgspec.Struct:
        """Return a frame with another value in one or two fields, of any depth."""
        fields = list(inspect.type_info(type(frame)).fields)  # type: ignore[attr-defined]
        if not fields:
            return frame
        for field in self._draw.sample(fields, min(len(fields), self._draw.choice((1, 1, 2)))):
            old = getattr(frame, field.name)
            frame = msgspec.structs.replace(frame, **{field.name: self._other(old, field)})
        return frame

    def _other(self, old: Any, field: inspect.Field) -> Any:
        draw = self._draw
        if isinstance(old, msgspec.Struct) and draw.random() < 0.8:
            return self.changed(old)
        if isinstance(old, list) and old and draw.random() < 0.8:
            at = draw.randrange(len(old))
            one = self.changed(old[at]) if isinstance(old[at], msgspec.Struct) else old[at]
            return draw.choice(([*old[:at], one, *old[at + 1 :]], old[:at], [*old, old[at]]))
        if isinstance(old, bytes) and draw.random() < 0.7:
            at = draw.randrange(len(old) + 1)
            return draw.choice((old[:at], old + old[:4], old[:at] + draw.randbytes(4) + old[at + 4 :]))
        if isinstance(old, int) and not isinstance(old, bool) and draw.random() < 0.5:
            return old + draw.choice((-1, 1, 2, 1000))
        return self._value(field.type, field.name)

    def _struct(self, kind: type[msgspec.Struct]) -> msgspec.Struct:
        fields = inspect.type_info(kind).fields  # type: ignore[attr-defined]
        given = {
            field.name: self._value(field.type, field.name)
            for field in fields
            if field.required or self._draw.random() < 0.5
        }
        return kind(**given)

    def _value(self, kind: inspect.Type, name: str) -> Any:
        draw = self._draw
        match kind:
            case inspect.Metadata():
                return self._value(kind.type, name)
            case inspect.UnionType():
                return self._value(draw.choice(kind.types), name)
            case inspect.NoneType():
                return None
            case inspect.BoolType():
                return draw.random() < 0.5
            case inspect.IntType():
                if self._is_foreign and name in _NAMES_IN_USE:
                    return draw.randrange(2**30, 2**31)
                return draw.choice((*_INTEGERS, *self._integers * 3))
            case inspect.FloatType():
                return draw.choice(_FLOATS)
            case inspect.StrType():
                return draw.choice(NAMES if name in _DESTINATIONS else _TEXTS)
            case inspect.BytesType():
                return self._bytes(name)
            case inspect.ListType():
                return [self._value(kind.item_type, "") for _ in range(draw.choice((0, 1, 2, 5)))]
            case inspect.VarTupleType():
                return tuple(self._value(kind.item_type, "") for _ in range(draw.choice((0, 1, 2))))
            case inspect.TupleType():
                return tuple(self._value(item, "") for item in kind.item_types)
            case inspect.DictType():
                return {self._value(kind.key_type, ""): self._value(kind.value_type, "") for _ in range(2)}
            case inspect.EnumType():
                return draw.choice(list(kind.cls))
            case inspect.StructType():
                return self._struct(kind.cls)
        raise AssertionError(f"no value for {kind}")

    def _bytes(self, name: str) -> bytes:
        draw = self._draw
        if name == "rid":
            return draw.randbytes(16)
        if name in _FEWEST_COLUMNS and draw.random() < 0.8:
            if self._is_foreign and name in _NAMES_IN_USE:
                return pack_ids([draw.randrange(2**30, 2**31) for _ in range(draw.choice((0, 1, 2, 9)))])
            numbers = [
                draw.choice((0, 1, 2, 3, 7, 100, 511, 512, -1, 2**31 - 1)) for _ in range(draw.choice((0, 1, 2, 9)))
            ]
            return pack_ids(numbers)
        return draw.choice(_BYTES)


__all__ = ["INBOXES", "FrameMaker"]
