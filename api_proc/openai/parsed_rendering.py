"""Chat responses whose output is parsed: reasoning, content and tool calls, in OpenAI's shape.

In a stream a call begins with an event that has its id and name, and goes on with pieces of its arguments.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from api_proc.openai.chat_format import ChatFormat, call_id
from api_proc.openai.logprobs import chat_logprobs
from api_proc.openai.parsed_choice import ParsedChoice, parsed_choices
from api_proc.parsing.pieces import CallArguments, CallStart, Content, Piece, Reasoning
from api_proc.server.rendering import ChoiceOutput, OpenAIEvents, Prompted, ending, named_tier, usage_member
from quartet.wire.frames import Finish, TextLogprobs
from quartet.wire.ids import Rid

_encode = msgspec.json.encode
_PLAIN_END = b'},"logprobs":null,"finish_reason":null}]}\n\n'


class ParsedChatShape(msgspec.Struct, frozen=True, tag="parsed_chat"):
    """What makes the renderer of a chat response that is parsed."""

    created: int
    model: str
    form: ChatFormat
    service_tier: str = ""

    @property
    def is_echoed(self) -> bool:
        """Thinking may be open at the prompt's end."""
        return self.form.needs_prompt

    def renderer(self, prompts: Sequence[Prompted], choices_each: int) -> "ParsedChatRenderer":
        """Return the renderer of one response."""
        choices = parsed_choices(self.form, prompts, choices_each)
        return ParsedChatRenderer(prompts[0].rid, self.created, self.model, self.form, choices, self.service_tier)


class ParsedChatRenderer(OpenAIEvents):
    """Implements Renderer for one chat response."""

    def __init__(
        self, rid: Rid, created: int, model: str, form: ChatFormat, choices: list[ParsedChoice], service_tier: str = ""
    ) -> None:
        self._rid = rid
        self._form = form
        self._identity: dict[str, Any] = {
            "id": f"chatcmpl-{rid.hex()}",
            "object": "chat.completion.chunk",
            "created": created,
            "model": model,
            **named_tier(service_tier),
        }
        self._head = b"data: " + _encode(self._identity)[:-1]
        self._choices = choices
        self._delta = [self._head + b',"choices":[{"index":%d,"delta":' % index for index in range(len(choices))]

    def take_ids(self, choice: int, ids: list[int]) -> None:
        """Count the ids of the output that is rendered next, as far as they are thinking."""
        self._choices[choice].thinking.take(ids)

    def first(self, choice: int) -> bytes:
        """Return the event with the role. Whether there is content is not known yet."""
        return self._event(choice, {"role": "assistant", "content": None}, b"null", b"")

    def delta(self, choice: int, text: str, logprobs: list[TextLogprobs] | None, usage: bytes) -> bytes:
        """Return the events of new text; none while the parser holds back all of it."""
        state = self._choices[choice]
        pieces = state.push(text)
        piece = pieces[0] if len(pieces) == 1 else None
        if piece is None or logprobs or usage or state.waiting or isinstance(piece, CallStart):
            state.waiting += logprobs or ()
            return self._events(choice, pieces, usage)
        # Nearly every token is such a piece.
        shown = _encode(piece.text)
        if isinstance(piece, Content):
            return b"".join((self._delta[choice], b'{"content":', shown, _PLAIN_END))
        if isinstance(piece, Reasoning):
            named = (b'{"reasoning_content":', shown, b',"reasoning":', shown)
            return b"".join((self._delta[choice], *named, _PLAIN_END))
        begun = b'{"tool_calls":[{"index":%d,"function":{"arguments":' % piece.call
        return b"".join((self._delta[choice], begun, shown, b"}}]", _PLAIN_END))

    def finish(self, choice: int, finish: Finish, usage: bytes) -> bytes:
        """Return the events of what was held back, and the one with the finish reason and the stop that matched."""
        state = self._choices[choice]
        rest = self._events(choice, state.finish(), usage)
        if state.waiting:
            rest += self._event(choice, {}, self._logprobs(state), usage)
        end = _encode({"logprobs": None, **self._ending(finish, state.calls)})
        return b"".join((rest, self._delta[choice], b"{},", end[1:], b"]", self._usage_member(usage), b"}\n\n"))

    def usage(self, usage: bytes, timings: bytes) -> bytes:
        """Return the event with no choices that carries the usage."""
        return self._head + b',"choices":[]' + self._usage_member(usage) + b',"timings":' + timings + b"}\n\n"

    def whole(self, choices: list[ChoiceOutput], usage: bytes, timings: bytes) -> bytes:
        """Return the body of a response that is not streamed."""
        for state, choice in zip(self._choices, choices, strict=True):
            state.thinking.take(choice.ids)
        body = {
            **self._identity,
            "object": "chat.completion",
            "choices": [self._whole_choice(index, choice) for index, choice in enumerate(choices)],
            "usage": msgspec.Raw(self._detailed(usage)),
            "timings": msgspec.Raw(timings),
        }
        return _encode(body)

    def _whole_choice(self, index: int, choice: ChoiceOutput) -> dict[str, Any]:
        state = self._choices[index]
        content, reasoning, calls = "", "", list[dict[str, Any]]()
        for piece in [*state.push(choice.text), *state.finish()]:
            match piece:
                case Content(text):
                    content += text
                case Reasoning(text):
                    reasoning += text
                case CallStart(call, name):
                    calls.append(self._call(index, call, name))
                case CallArguments(call, text):
                    calls[call]["function"]["arguments"] += text
        message: dict[str, Any] = {"role": "assistant", "content": content or None, "refusal": None}
        if reasoning:
            message |= _reasoning(reasoning)
        if calls:
            message["tool_calls"] = calls
        logprobs = chat_logprobs(choice.logprobs) if choice.logprobs else None
        end = self._ending(choice.finish, len(calls))
        return {"index": index, "message": message, "logprobs": logprobs, **end}

    def _events(self, choice: int, pieces: list[Piece], usage: bytes) -> bytes:
        state = self._choices[choice]
        events = []
        for piece in _joined(pieces):
            state.calls += isinstance(piece, CallStart)
            events.append(self._event(choice, self._shown(choice, piece), self._logprobs(state), usage))
        return b"".join(events)

    def _shown(self, choice: int, piece: Piece) -> dict[str, Any]:
        """Return the delta of a piece."""
        match piece:
            case Content(text):
                return {"content": text}
            case Reasoning(text):
                return _reasoning(text)
            case CallStart(call, name):
                return {"tool_calls": [{"index": call, **self._call(choice, call, name)}]}
            case CallArguments(call, text):
                return {"tool_calls": [{"index": call, "function": {"arguments": text}}]}

    def _call(self, choice: int, call: int, name: str) -> dict[str, Any]:
        """Return a call without arguments."""
        identity = {"id": call_id(self._form, self._rid, choice, call), "type": "function"}
        return {**identity, "function": {"name": name, "arguments": ""}}

    def _ending(self, finish: Finish | None, calls: int) -> dict[str, Any]:
        """Return how a choice ended. A call to a function that the client has named ends by `stop`, as in OpenAI's."""
        end = ending(finish)
        if calls and end["finish_reason"] == "stop" and not self._form.is_named:
            end["finish_reason"] = "tool_calls"
        return end

    def _usage_member(self, usage: bytes) -> bytes:
        return usage_member(self._detailed(usage)) if usage else b""

    def _detailed(self, usage: bytes) -> bytes:
        """Return `usage` with the tokens of the thinking, if the model thinks."""
        if not self._form.reasoning_parser:
            return usage
        tokens = sum(state.reasoning_tokens for state in self._choices)
        return b'%b,"completion_tokens_details":{"reasoning_tokens":%d}}' % (usage[:-1], tokens)

    def _logprobs(self, state: ParsedChoice) -> bytes:
        """Return the entries that have waited for an event."""
        if not state.waiting:
            return b"null"
        entries, state.waiting = state.waiting, []
        return _encode(chat_logprobs(entries))

    def _event(self, choice: int, delta: dict[str, Any], logprobs: bytes, usage: bytes) -> bytes:
        return b"".join(
            (
                self._delta[choice],
                _encode(delta),
                b',"logprobs":',
                logprobs,
                b',"finish_reason":null}]',
                self._usage_member(usage),
                b"}\n\n",
            )
        )


def _reasoning(text: str) -> dict[str, Any]:
    """Return thinking under both names that clients know."""
    return {"reasoning_content": text, "reasoning": text}


def _joined(pieces: Iterable[Piece]) -> list[Piece]:
    """Return pieces, those of one kind that follow each other as one."""
    joined: list[Piece] = []
    for piece in pieces:
        match joined[-1] if joined else None, piece:
            case Content(before), Content(text):
                joined[-1] = Content(before + text)
            case Reasoning(before), Reasoning(text):
                joined[-1] = Reasoning(before + text)
            case CallArguments(call, before), CallArguments(same, text) if call == same:
                joined[-1] = CallArguments(call, before + text)
            case _:
                joined.append(piece)
    return joined
