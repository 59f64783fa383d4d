"""What the tokenizer process and its children send each other: JSON behind its length, over two pipes."""

from typing import IO, Any

import msgspec

from quartet.wire.frames import Grammar

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


class Open(msgspec.Struct, tag=True):
    """Load the tokenizer of this folder for grammars; see quartet.checkpoint.grammar_tokenizer."""

    folder: str
    vocab_size: int
    eos_token_ids: tuple[int, ...]


class Compile(msgspec.Struct, tag=True):
    """Compile a grammar with the thinking that a prompt asks for, within so much processor time."""

    grammar: Grammar
    thinking: str
    deadline_s: float


class Compiled(msgspec.Struct, tag=True):
    """The source of the grammar of kind llguidance; empty for Open."""

    source: str


class NotCompiled(msgspec.Struct, tag=True):
    """Why a grammar cannot be used, or any with this tokenizer."""

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
