"""One output item while its text comes: a message, reasoning or a call, and the events that show it."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

from api_proc.openai.chat_format import ChatFormat, call_id
from api_proc.openai.logprobs import chat_logprobs
from api_proc.parsing.pieces import CallArguments, CallStart, Content, Piece, Reasoning
from quartet.wire.frames import TextLogprobs
from quartet.wire.ids import Rid

Event = tuple[str, dict[str, Any]]
"""Name and members of an event."""


class _Kind(NamedTuple):
    """What an item's id begins with, and what its text is called."""

    prefix: str
    text: str


_KINDS: dict[type[Piece], _Kind] = {
    Content: _Kind("msg", "output_text"),
    Reasoning: _Kind("rs", "reasoning_text"),
    CallStart: _Kind("fc", "function_call_arguments"),
}


class OpenItem:
    """The item that begins with a piece.

    Args:
        first: the piece.
        form: of the output.
        rid: of the request; ids of items are made from it.
        index: the item's place in the output.
    """

    def __init__(self, first: Piece, form: ChatFormat, rid: Rid, index: int) -> None:
        self._first = first
        self._form = form
        self._rid = rid
        self._kind = _KINDS[type(first)]
        self._more = CallArguments if isinstance(first, CallStart) else type(first)
        self._texts: list[str] = []
        self._logprobs: list[dict[str, Any]] = []
        self._index = index
        self._at = {"item_id": f"{self._kind.prefix}_{rid.hex()}{index:02}", "output_index": index}
        if not self.is_call:
            self._at["content_index"] = 0
        name = f"response.{self._kind.text}.delta"
        head = msgspec.json.encode({"type": name, **self._at})[:-1]
        self._delta = b'event: %b\ndata: %b,"delta":' % (name.encode(), head)
        """The event of new text, up to the text; and what follows it without log-probabilities."""
        self._tail = b',"logprobs":[]' if isinstance(first, Content) else b""

    @property
    def is_call(self) -> bool:
        """Whether the item is a call, whose text is no part of a content."""
        return isinstance(self._first, CallStart)

    def takes(self, piece: Piece) -> bool:
        """Return whether a piece goes on with this item."""
        return type(piece) is self._more

    def added(self) -> Iterator[Event]:
        """Yield the events that begin the item."""
        empty = self._item("in_progress", "", [])
        yield "response.output_item.added", {"output_index": self._index, "item": empty}
        if not self.is_call:
            yield "response.content_part.added", {**self._at, "part": self._part("", [])}

    def delta(self, text: str, logprobs: list[TextLogprobs], number: int) -> bytes:
        """Take new text, with the log-probabilities of its tokens; return its event, which has the given number.

        It is on the path of every token, so that only what changes is encoded.
        """
        self._texts.append(text)
        tail = self._tail
        if logprobs and tail:
            entries = chat_logprobs(logprobs)["content"]
            self._logprobs += entries
            tail = b',"logprobs":' + msgspec.json.encode(entries)
        encoded = msgspec.json.encode(text)
        return b'%b%b%b,"sequence_number":%d}\n\n' % (self._delta, encoded, tail, number)

    def done(self, status: str) -> Iterator[Event]:
        """Yield the events that end the item."""
        text, name = "".join(self._texts), f"response.{self._kind.text}.done"
        if isinstance(self._first, CallStart):
            yield name, {**self._at, "name": self._first.name, "arguments": text}
        else:
            yield name, {**self._at, "text": text, **self._with_logprobs(self._logprobs)}
            yield "response.content_part.done", {**self._at, "part": self._part(text, self._logprobs)}
        yield "response.output_item.done", {"output_index": self._index, "item": self.item(status)}

    def item(self, status: str) -> dict[str, Any]:
        """Return the item with the text so far."""
        text = "".join(self._texts)
        return self._item(status, text, [self._part(text, self._logprobs)])

    def _item(self, status: str, text: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        item: dict[str, Any] = {"id": self._at["item_id"], "status": status}
        match self._first:
            case CallStart(call, name):
                identity = {"call_id": call_id(self._form, self._rid, 0, call), "name": name}
                return item | {"type": "function_call", **identity, "arguments": text}
            case Reasoning():
                return item | {"type": "reasoning", "summary": [], "content": content}
        return item | {"type": "message", "role": "assistant", "content": content}

    def _part(self, text: str, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
        annotations: dict[str, Any] = {"annotations": []} if isinstance(self._first, Content) else {}
        return {"type": self._kind.text, "text": text, **annotations, **self._with_logprobs(logprobs)}

    def _with_logprobs(self, entries: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the member that only text for the user has."""
        return {"logprobs": entries} if isinstance(self._first, Content) else {}
