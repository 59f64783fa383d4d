"""Parsed chat responses as bytes: OpenAI's piecewise shape, and the same message streamed and whole."""

import json
from typing import Any

import msgspec
import pytest
from fake_engine import finish, logprob_of

from api_proc.openai.chat_format import ChatFormat, ThinkingTokens, call_id
from api_proc.openai.parsed_choice import ParsedChoice
from api_proc.openai.parsed_rendering import ParsedChatRenderer, ParsedChatShape
from api_proc.parsing.pieces import CallArguments, CallStart, Content, Piece, Reasoning
from api_proc.server.rendering import ChoiceOutput
from api_proc.shapes import read_shape
from quartet.wire.ids import Rid

RID = Rid(bytes(range(16)))
USAGE = b'{"total_tokens":3}'
CLOSING = 9


class Marked:
    """An OutputParser: `~` begins or ends thinking, `[name` a call, `|` its arguments, `]` ends it."""

    def __init__(self) -> None:
        self._kind, self._call, self._name = "content", -1, ""

    def push(self, text: str) -> list[Piece]:
        return [piece for character in text for piece in self._one(character)]

    def finish(self) -> list[Piece]:
        return [Content(self._name)] if self._kind == "name" else []

    def _one(self, character: str) -> list[Piece]:
        if character == "~":
            self._kind = "content" if self._kind == "thinking" else "thinking"
        elif character == "[":
            self._kind, self._name = "name", ""
        elif character == "|":
            self._kind, self._call = "arguments", self._call + 1
            return [CallStart(self._call, self._name)]
        elif character == "]":
            self._kind = "content"
        elif self._kind == "name":
            self._name += character
        elif self._kind == "arguments":
            return [CallArguments(self._call, character)]
        else:
            return [Reasoning(character) if self._kind == "thinking" else Content(character)]
        return []


def renderer(choices: int = 1, **form: Any) -> ParsedChatRenderer:
    made = ChatFormat("hermes", **form)
    states = [ParsedChoice(Marked(), ThinkingTokens(CLOSING), made.is_single) for _ in range(choices)]
    return ParsedChatRenderer(RID, 7, "toy", made, states)


def events(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(event.removeprefix(b"data: ")) for event in data.split(b"\n\n") if event]


def streamed(texts: list[str], reason: str = "stop", choice: int = 0, **form: Any) -> list[dict[str, Any]]:
    writer = renderer(choice + 1, **form)
    data = [writer.first(choice), *(writer.delta(choice, text, None, b"") for text in texts)]
    return events(b"".join([*data, writer.finish(choice, finish(reason), b"")]))


def deltas(data: list[dict[str, Any]]) -> list[Any]:
    return [event["choices"][0]["delta"] for event in data]


def whole(text: str, reason: str = "stop", **form: Any) -> dict[str, Any]:
    body = json.loads(renderer(**form).whole([ChoiceOutput([text], [], finish(reason))], USAGE, b"{}"))
    assert body["usage"] == {"total_tokens": 3}
    choice: dict[str, Any] = body["choices"][0]
    return choice


def message_of(data: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the message that a client puts together from a stream."""
    message: dict[str, Any] = {"role": "assistant", "content": None, "refusal": None}
    for delta in deltas(data):
        for name in ("content", "reasoning", "reasoning_content"):
            if delta.get(name) is not None:
                message[name] = (message.get(name) or "") + delta[name]
        for piece in delta.get("tool_calls", ()):
            calls = message.setdefault("tool_calls", [])
            if piece["index"] == len(calls):
                calls.append({key: value for key, value in piece.items() if key != "index"})
            else:
                calls[piece["index"]]["function"]["arguments"] += piece["function"]["arguments"]
    return message


def test_the_frames_of_a_call() -> None:
    data = streamed(["~so", "~a", "[lo", 'ok|{"x', '":1}', "]"])
    first, *middle, last = deltas(data)
    assert first == {"role": "assistant", "content": None}
    assert middle[0] == {"reasoning_content": "so", "reasoning": "so"}
    assert middle[1] == {"content": "a"}
    (call,) = middle[2]["tool_calls"]
    assert call.pop("id").startswith("call_")
    assert call == {"index": 0, "type": "function", "function": {"name": "look", "arguments": ""}}
    assert [one["tool_calls"][0] for one in middle[3:]] == [
        {"index": 0, "function": {"arguments": '{"x'}},
        {"index": 0, "function": {"arguments": '":1}'}},
    ]
    assert last == {}
    assert [event["choices"][0]["finish_reason"] for event in data] == [None] * 6 + ["tool_calls"]
    assert {event["id"] for event in data} == {f"chatcmpl-{RID.hex()}"}


@pytest.mark.parametrize("text", ["", "a", "~so~", "~so~a", "[f|{}]", "a[f|{}]b[g|[1]]", "~so~[f|{", "a[f", "~so"])
def test_a_stream_makes_the_whole_message(text: str) -> None:
    message = whole(text)["message"]
    for cuts in ([text], list(text), [text[:2], text[2:4], text[4:]]):
        assert message_of(streamed(cuts)) == message
    assert (message["content"] is None) == (not text.replace("~so", "").replace("~", "").startswith("a"))


@pytest.mark.parametrize(
    ("text", "reason", "is_named", "expected"),
    [
        ("a", "stop", False, "stop"),
        ("[f|{}]", "stop", False, "tool_calls"),
        ("[f|{}]", "stop", True, "stop"),
        ("[f|{", "length", False, "length"),
        ("[f", "stop", False, "stop"),
    ],
)
def test_how_a_choice_ends(text: str, reason: str, is_named: bool, expected: str) -> None:
    assert whole(text, reason, is_named=is_named)["finish_reason"] == expected
    assert streamed([text], reason, is_named=is_named)[-1]["choices"][0]["finish_reason"] == expected


def test_a_client_that_takes_one_call_gets_one() -> None:
    text = "[f|{}][g|{}]a"
    message = whole(text, is_single=True)["message"]
    assert [call["function"]["name"] for call in message["tool_calls"]] == ["f"]
    assert message_of(streamed(list(text), is_single=True)) == message


def test_ids_of_calls_differ_and_are_the_same_again() -> None:
    def ids(choice: int) -> list[str]:
        return [call["id"] for call in message_of(streamed(["[f|1][g|2]"], choice=choice))["tool_calls"]]

    assert ids(0) == ids(0)
    assert len({*ids(0), *ids(1)}) == 4


def test_every_log_probability_comes_in_order() -> None:
    texts = ["~", "so", "~", "a", "[f", "|1", "]", "]"]
    writer = renderer()
    data = [writer.delta(0, text, [logprob_of(str(at), 1, at)], b"") for at, text in enumerate(texts)]
    data.append(writer.finish(0, finish(), b""))
    logprobs = [event["choices"][0]["logprobs"] for event in events(b"".join(data))]
    assert [entry["token"] for each in logprobs if each for entry in each["content"]] == [*"01234567"]
    assert logprobs[-1] is None
    entries = [logprob_of(str(at), 1, at) for at in range(len(texts))]
    body = json.loads(renderer().whole([ChoiceOutput(texts, entries, finish())], USAGE, b"{}"))
    assert [entry["token"] for entry in body["choices"][0]["logprobs"]["content"]] == [*"01234567"]


def test_usage_in_every_event_and_at_the_end() -> None:
    writer = renderer()
    data = writer.delta(0, "~so~a", None, USAGE) + writer.finish(0, finish(), USAGE)
    assert [event["usage"] for event in events(data)] == [{"total_tokens": 3}] * 3
    (end,) = events(writer.usage(USAGE, b"{}"))
    assert (end["choices"], end["usage"], end["timings"]) == ([], {"total_tokens": 3}, {})


@pytest.mark.parametrize(
    ("text", "ids", "expected"),
    [
        ("~so~a", [1, 2, CLOSING, 3], 3),
        ("~so", [1, 2, 3], 3),
        ("a", [1, CLOSING, 2], 0),
        ("~so~a", [1, 2, CLOSING, 3, CLOSING], 3),
    ],
)
def test_the_tokens_of_the_thinking_are_counted(text: str, ids: list[int], expected: int) -> None:
    details = {"total_tokens": 3, "completion_tokens_details": {"reasoning_tokens": expected}}
    writer = renderer(reasoning_parser="think")
    writer.take_ids(0, ids[:1])
    writer.delta(0, text, None, b"")
    for index in ids[1:]:
        writer.take_ids(0, [index])
    assert events(writer.finish(0, finish(), USAGE))[-1]["usage"] == details
    assert events(writer.usage(USAGE, b"{}"))[0]["usage"] == details
    output = ChoiceOutput([text], [], finish(), ids)
    assert json.loads(renderer(reasoning_parser="think").whole([output], USAGE, b"{}"))["usage"] == details


def test_ids_of_calls_that_templates_of_mistral_take() -> None:
    assert len(call_id(ChatFormat("mistral"), RID, 0, 0)) == 9


def test_another_process_reads_the_shape_alike() -> None:
    tools = (("look", {"type": "object", "properties": {"at": {"enum": [5, None]}}}, True),)
    shape = ParsedChatShape(7, "toy", ChatFormat("hermes", "think", tools, is_named=True))
    assert read_shape(msgspec.Raw(msgspec.msgpack.encode(shape))) == shape
