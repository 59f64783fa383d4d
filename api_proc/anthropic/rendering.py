"""Messages as bytes: Anthropic's events, and whole messages. Pieces of a kind that follow each other are one block."""

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import msgspec

from api_proc.anthropic.errors import error_body
from api_proc.openai.chat_format import ChatFormat, call_id
from api_proc.openai.parsed_choice import ParsedChoice, parsed_choices
from api_proc.parsing.partial_json import completed_object
from api_proc.parsing.pieces import CallArguments, CallStart, Content, Piece, Reasoning
from api_proc.server.rendering import ChoiceOutput, Prompted
from quartet.wire.errors import RequestError
from quartet.wire.frames import Finish, TextLogprobs
from quartet.wire.ids import Rid

_encode = msgspec.json.encode


class MessageShape(msgspec.Struct, frozen=True, tag="message"):
    """What makes the renderer of a message.

    With `hides_thinking` the blocks of the thinking are there, without their text. With `manages_context` the answer
    says which edits of the context were made: none are.
    """

    form: ChatFormat
    model: str
    max_tokens: int
    hides_thinking: bool = False
    manages_context: bool = False

    @property
    def is_echoed(self) -> bool:
        """Whether the prompt's text says how the output begins."""
        return self.form.needs_prompt

    def renderer(self, prompts: Sequence[Prompted], choices_each: int) -> "MessageRenderer":
        """Return the renderer of one message."""
        (prompt,), (parsed,) = prompts, parsed_choices(self.form, prompts, choices_each)
        return MessageRenderer(self, prompt.rid, len(prompt.prompt_ids), parsed)


class MessageRenderer:
    """Implements Renderer for one message."""

    keep_alive: ClassVar[bytes] = b'event: ping\ndata: {"type":"ping"}\n\n'
    end_of_stream: ClassVar[bytes] = b""

    def __init__(self, shape: MessageShape, rid: Rid, input_tokens: int, parsed: ParsedChoice) -> None:
        self._shape = shape
        self._rid = rid
        self._input_tokens = input_tokens
        self._parsed = parsed
        self._has_calls = False
        self._index = -1
        self._kind = ""
        """Of the block that is open."""
        self._delta = b""
        """The event of the open block, up to its text."""

    # Renderer

    def take_ids(self, choice: int, ids: list[int]) -> None:
        """Count the ids of the output that is rendered next, as far as they are thinking."""
        self._parsed.thinking.take(ids)

    def first(self, choice: int) -> bytes:
        """Return the event that opens the message."""
        message = self._message([], None) | {"usage": self._usage(None)}
        return _event("message_start", {"message": message})

    def delta(self, choice: int, text: str, logprobs: list[TextLogprobs] | None, usage: bytes) -> bytes:
        """Return the events of new text."""
        return self._pieces(self._parsed.push(text))

    def finish(self, choice: int, finish: Finish, usage: bytes) -> bytes:
        """Return the rest of the output and the events that end the message."""
        rest = self._pieces(self._parsed.finish()) + self._close()
        end = {"delta": self._ending(finish), "usage": self._usage(finish), **self._edits()}
        return rest + _event("message_delta", end) + _event("message_stop", {})

    def usage(self, usage: bytes, timings: bytes) -> bytes:
        """Return nothing: the usage is in the events that open and end the message."""
        return b""

    def error(self, error: RequestError) -> bytes:
        """Return the event of an error that ends the stream."""
        return b"event: error\ndata: " + error_body(error) + b"\n\n"

    def whole(self, choices: list[ChoiceOutput], usage: bytes, timings: bytes) -> bytes:
        """Return the body of a message that is not streamed."""
        (choice,) = choices
        self._parsed.thinking.take(choice.ids)
        content = self._blocks([*self._parsed.push(choice.text), *self._parsed.finish()])
        self._has_calls = any(block["type"] == "tool_use" for block in content)
        end = {"usage": self._usage(choice.finish), **self._edits()}
        return _encode(self._message(content, choice.finish) | end)

    # Members of a message

    def _message(self, content: list[dict[str, Any]], finish: Finish | None) -> dict[str, Any]:
        return {
            "id": f"msg_{self._rid.hex()}",
            "type": "message",
            "role": "assistant",
            "model": self._shape.model,
            "content": content,
            **self._ending(finish),
        }

    def _ending(self, finish: Finish | None) -> dict[str, Any]:
        """Return why the message has ended."""
        reason, sequence = None, None
        if finish is not None:
            reason = "end_turn"
            if finish.reason == "length":
                is_whole = finish.count >= self._shape.max_tokens
                reason = "max_tokens" if is_whole else "model_context_window_exceeded"
            elif self._has_calls:
                reason = "tool_use"
            elif isinstance(finish.matched, str):
                reason, sequence = "stop_sequence", finish.matched
        return {"stop_reason": reason, "stop_sequence": sequence}

    def _edits(self) -> dict[str, Any]:
        return {"context_management": {"applied_edits": []}} if self._shape.manages_context else {}

    def _usage(self, finish: Finish | None) -> dict[str, Any]:
        """Return the tokens so far; which of the prompt's were in the cache is known at the end."""
        cached, output = (0, 0) if finish is None else (finish.timings.cached_tokens, finish.count)
        return {
            "input_tokens": self._input_tokens - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": output,
            "output_tokens_details": {"thinking_tokens": self._parsed.reasoning_tokens},
        }

    # Blocks

    def _blocks(self, pieces: Iterable[Piece]) -> list[dict[str, Any]]:
        """Return the content of a whole message."""
        groups: list[tuple[Piece, list[str]]] = []
        for piece in pieces:
            if isinstance(piece, CallStart):
                groups.append((piece, []))
            elif isinstance(piece, CallArguments) or (groups and type(groups[-1][0]) is type(piece)):
                groups[-1][1].append(piece.text)
            else:
                groups.append((piece, [piece.text]))
        return [self._block(first, "".join(texts), self._rid.hex()) for first, texts in groups]

    def _block(self, first: Piece, text: str = "", signature: str = "") -> dict[str, Any]:
        """Return the block that begins with a piece."""
        match first:
            case CallStart(call, name):
                identity = {"id": call_id(self._shape.form, self._rid, 0, call, "toolu_"), "name": name}
                return {"type": "tool_use", **identity, "input": completed_object(text)}
            case Reasoning():
                shown = "" if self._shape.hides_thinking else text
                return {"type": "thinking", "thinking": shown, "signature": signature}
        return {"type": "text", "text": text}

    def _pieces(self, pieces: list[Piece]) -> bytes:
        if len(pieces) == 1:
            return self._piece(pieces[0])
        return b"".join([self._piece(piece) for piece in pieces])

    def _piece(self, piece: Piece) -> bytes:
        if type(piece) is Content and self._kind == "text":
            # Most of all pieces: one more of an open text.
            return b"%b%b}}\n\n" % (self._delta, _encode(piece.text))
        match piece:
            case CallStart():
                self._has_calls = True
                return self._open(piece, "tool_use", "input_json_delta", "partial_json")
            case Content(text):
                start = self._open(piece, "text", "text_delta", "text")
            case Reasoning(text):
                start = b""
                if self._kind != "thinking":
                    start = self._open(piece, "thinking", "thinking_delta", "thinking")
                if self._shape.hides_thinking:
                    return start
            case CallArguments(_, text):
                start = b""
        return b"".join((start, self._delta, _encode(text), b"}}\n\n"))

    def _open(self, piece: Piece, kind: str, delta: str, member: str) -> bytes:
        """Close the open block and begin the next."""
        closed = self._close()
        self._index += 1
        self._kind = kind
        self._delta = (
            b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":{"type":"%b","%b":'
        ) % (self._index, delta.encode(), member.encode())
        return closed + _event("content_block_start", {"index": self._index, "content_block": self._block(piece)})

    def _close(self) -> bytes:
        kind, self._kind = self._kind, ""
        if not kind:
            return b""
        signed = b""
        if kind == "thinking":
            signature = {"type": "signature_delta", "signature": self._rid.hex()}
            signed = _event("content_block_delta", {"index": self._index, "delta": signature})
        return signed + _event("content_block_stop", {"index": self._index})


def _event(name: str, members: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), _encode({"type": name, **members}))
