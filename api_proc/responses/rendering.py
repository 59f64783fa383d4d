"""Responses as bytes: output items, events, whole responses. Pieces of a kind that follow each other are one item.

Every event carries its number, and the last one the whole response, so streamed and whole answers are built alike.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import msgspec

from api_proc.openai.chat_format import ChatFormat
from api_proc.openai.parsed_choice import ParsedChoice, parsed_choices
from api_proc.parsing.pieces import CallStart, Content, Piece
from api_proc.responses.items import OpenItem
from api_proc.server.rendering import ChoiceOutput, Prompted
from quartet.wire.errors import RequestError
from quartet.wire.frames import Finish, TextLogprobs
from quartet.wire.ids import Rid

_encode = msgspec.json.encode


class ResponseShape(msgspec.Struct, frozen=True, tag="response"):
    """What makes the renderer of a response. `told` is the JSON of what a response repeats of its request."""

    form: ChatFormat
    created: int
    told: bytes

    @property
    def is_echoed(self) -> bool:
        """Whether the prompt's text says how the output begins."""
        return self.form.needs_prompt

    def renderer(self, prompts: Sequence[Prompted], choices_each: int) -> "ResponseRenderer":
        """Return the renderer of one response."""
        (prompt,), (parsed,) = prompts, parsed_choices(self.form, prompts, choices_each)
        return ResponseRenderer(self, prompt.rid, len(prompt.prompt_ids), parsed)


class ResponseRenderer:
    """Implements Renderer for one response."""

    keep_alive: ClassVar[bytes] = b": keep-alive\n\n"
    end_of_stream: ClassVar[bytes] = b""

    def __init__(self, shape: ResponseShape, rid: Rid, input_tokens: int, parsed: ParsedChoice) -> None:
        self._form = shape.form
        self._rid = rid
        self._input_tokens = input_tokens
        self._parsed = parsed
        self._fixed: dict[str, Any] = {
            "id": f"resp_{rid.hex()}",
            "object": "response",
            "created_at": shape.created,
            **msgspec.json.decode(shape.told),
        }
        self._number = 0
        self._output: list[dict[str, Any]] = []
        self._open: OpenItem | None = None

    # Renderer

    def take_ids(self, choice: int, ids: list[int]) -> None:
        """Count the ids of the output that is rendered next, as far as they are thinking."""
        self._parsed.thinking.take(ids)

    def first(self, choice: int) -> bytes:
        """Return the events that open the response."""
        response = {"response": self._response("in_progress", None)}
        return self._event("response.created", response) + self._event("response.in_progress", response)

    def delta(self, choice: int, text: str, logprobs: list[TextLogprobs] | None, usage: bytes) -> bytes:
        """Return the events of new text."""
        self._parsed.waiting += logprobs or ()
        return self._pieces(self._parsed.push(text))

    def finish(self, choice: int, finish: Finish, usage: bytes) -> bytes:
        """Return the rest of the output and the events that end the response."""
        status, rest = self._end(finish)
        return rest + self._event(f"response.{status}", {"response": self._response(status, finish)})

    def usage(self, usage: bytes, timings: bytes) -> bytes:
        """Return nothing: the usage is in the event that ends the response."""
        return b""

    def error(self, error: RequestError) -> bytes:
        """Return the events of an error that ends the stream."""
        code = "server_error" if error.status >= 500 else error.code
        detail = {"code": code, "message": error.message, "param": error.param}
        # Documented are the members at the top; what OpenAI sends, and clients raise, is the object.
        event = self._event("error", {**detail, "error": {"type": code, **detail}})
        failed = self._response("failed", None) | {"error": {"code": code, "message": error.message}}
        return event + self._event("response.failed", {"response": failed})

    def whole(self, choices: list[ChoiceOutput], usage: bytes, timings: bytes) -> bytes:
        """Return the body of a response that is not streamed."""
        (choice,) = choices
        assert choice.finish is not None
        self.take_ids(0, choice.ids)
        self.delta(0, choice.text, choice.logprobs, b"")
        status, _ = self._end(choice.finish)
        return _encode(self._response(status, choice.finish))

    # The response

    def _response(self, status: str, finish: Finish | None) -> dict[str, Any]:
        return {
            **self._fixed,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "output": self._output,
            "usage": None if finish is None else self._usage(finish),
        }

    def _usage(self, finish: Finish) -> dict[str, Any]:
        return {
            "input_tokens": self._input_tokens,
            "input_tokens_details": {"cached_tokens": finish.timings.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": finish.count,
            "output_tokens_details": {"reasoning_tokens": self._parsed.reasoning_tokens},
            "total_tokens": self._input_tokens + finish.count,
        }

    def _end(self, finish: Finish) -> tuple[str, bytes]:
        """Take the end of the output; return the response's status and the events before its last."""
        rest = self._pieces(self._parsed.finish())
        if self._open is None:
            # Clients expect a message, even an empty one.
            rest += self._begin(Content(""))
        status = "incomplete" if finish.reason == "length" else "completed"
        return status, rest + self._close(status)

    # Items

    def _pieces(self, pieces: list[Piece]) -> bytes:
        if len(pieces) == 1:
            return self._piece(pieces[0])
        return b"".join([self._piece(piece) for piece in pieces])

    def _piece(self, piece: Piece) -> bytes:
        begun = b"" if self._open is not None and self._open.takes(piece) else self._begin(piece)
        assert self._open is not None
        if isinstance(piece, CallStart) or not piece.text:
            return begun
        logprobs, self._parsed.waiting = self._parsed.waiting, []
        self._number += 1
        return begun + self._open.delta(piece.text, logprobs, self._number - 1)

    def _begin(self, piece: Piece) -> bytes:
        closed = self._close("completed")
        self._open = OpenItem(piece, self._form, self._rid, len(self._output))
        return closed + b"".join([self._event(*event) for event in self._open.added()])

    def _close(self, status: str) -> bytes:
        if self._open is None:
            return b""
        self._output.append(self._open.item(status))
        events = b"".join([self._event(*event) for event in self._open.done(status)])
        self._open = None
        return events

    def _event(self, name: str, members: dict[str, Any]) -> bytes:
        body = _encode({"type": name, "sequence_number": self._number, **members})
        self._number += 1
        return b"event: %b\ndata: %b\n\n" % (name.encode(), body)
