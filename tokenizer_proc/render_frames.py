"""What the tokenizer process and its render child send each other: JSON behind its length, over two pipes."""

from typing import IO, Any

import msgspec

_LENGTH_BYTES = 4


class Load(msgspec.Struct, tag=True):
    """Compile this template."""

    source: str


class Render(msgspec.Struct, tag=True):
    """Render with these variables, within so much processor time."""

    variables: dict[str, Any]
    deadline_s: float


class Rendered(msgspec.Struct, tag=True):
    """The text; empty for Load."""

    text: str


class NotRendered(msgspec.Struct, tag=True):
    """See tokenizer_proc.renderer.RenderError."""

    kind: str
    reason: str


def write(pipe: IO[bytes], message: msgspec.Struct) -> None:
    """Send one message; raises OSError without a reader, RecursionError for one that is nested too deeply."""
    data = msgspec.json.encode(message)
    pipe.write(len(data).to_bytes(_LENGTH_BYTES, "little") + data)
    pipe.flush()


def read(pipe: IO[bytes]) -> bytes | None:
    """Return one message, or None at the end of the pipe, also if it comes within a message."""
    head = pipe.read(_LENGTH_BYTES)
    if len(head) < _LENGTH_BYTES:
        return None
    size = int.from_bytes(head, "little")
    data = pipe.read(size)
    return data if len(data) == size else None
