"""Messages as Anthropic's events and bodies: blocks, stop reasons, usage; streamed and whole ones agree."""

import json
from typing import Any

import msgspec
import pytest
from fake_engine import finish
from scripted_parser import END_OF_THINKING, MIXED, RID, choice_of

from api_proc.anthropic.rendering import MessageRenderer, MessageShape
from api_proc.openai.chat_format import ChatFormat
from api_proc.parsing.partial_json import completed_object
from api_proc.parsing.pieces import CallArguments, CallStart, Content, Piece
from api_proc.server.rendering import ChoiceOutput
from quartet.wire.errors import RequestError


def renderer(pieces: list[Piece], max_tokens: int = 100, hides_thinking: bool = False) -> MessageRenderer:
    shape = MessageShape(ChatFormat(), "toy", max_tokens, hides_thinking)
    return MessageRenderer(shape, RID, 5, choice_of(pieces))


def events(payload: bytes) -> list[Any]:
    """Return the data of the events, whose `event` lines say the same."""
    found = []
    for event in payload.decode().split("\n\n")[:-1]:
        name, data = event.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def streamed(made: MessageRenderer, pieces: int, **end: Any) -> list[Any]:
    payload = made.first(0) + b"".join(made.delta(0, "x", None, b"") for _ in range(pieces))
    return events(payload + made.finish(0, finish(**end), b"") + made.end_of_stream)


def gathered(found: list[Any]) -> list[Any]:
    """Return the blocks that the events make, as Anthropic's clients do."""
    blocks: list[Any] = []
    for event in found:
        match event["type"]:
            case "content_block_start":
                assert event["index"] == len(blocks)
                blocks.append({**event["content_block"], "json": ""})
            case "content_block_delta":
                assert event["index"] == len(blocks) - 1
                for member, text in event["delta"].items():
                    if member != "type":
                        key = "json" if member == "partial_json" else member
                        blocks[-1][key] += text
            case "content_block_stop":
                text = blocks[-1].pop("json")
                if blocks[-1]["type"] == "tool_use":
                    blocks[-1]["input"] = json.loads(text)
    return blocks


def whole(made: MessageRenderer, **end: Any) -> Any:
    return json.loads(made.whole([ChoiceOutput(parts=["x"], finish=finish(**end))], b"", b""))


@pytest.mark.parametrize("hides_thinking", [False, True])
def test_streamed_and_whole_messages_have_the_same_blocks(hides_thinking: bool) -> None:
    found = streamed(renderer(MIXED, hides_thinking=hides_thinking), 4)
    body = whole(renderer(MIXED, hides_thinking=hides_thinking))
    assert gathered(found) == body["content"]
    assert [block["type"] for block in body["content"]] == ["thinking", "text", "tool_use", "tool_use", "text"]
    thinking, text, call, other, last = body["content"]
    assert thinking["thinking"] == ("" if hides_thinking else "Let me think.")
    assert thinking["signature"]
    assert (text["text"], last["text"]) == ("I call wörld\n", "Done.")
    assert (call["name"], call["input"]) == ("get_weather", {"city": "Paris", "days": [1, 2]})
    assert other["input"] == {}
    assert call["id"].startswith("toolu_") and call["id"] != other["id"]


def test_the_order_and_the_members_of_events() -> None:
    found = streamed(renderer([Content("Hi")]), 1, count=7)
    assert [event["type"] for event in found] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert found[0]["message"] == {
        "id": f"msg_{RID.hex()}",
        "type": "message",
        "role": "assistant",
        "model": "toy",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {
            "input_tokens": 5,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": 0,
            "output_tokens_details": {"thinking_tokens": 0},
        },
    }
    assert found[4]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    # Three of the prompt's five tokens were in the cache.
    assert (found[4]["usage"]["input_tokens"], found[4]["usage"]["cache_read_input_tokens"]) == (2, 3)
    assert found[4]["usage"]["output_tokens"] == 7


@pytest.mark.parametrize(
    ("pieces", "end", "reason", "sequence"),
    [
        ([Content("x")], {}, "end_turn", None),
        ([Content("x")], {"matched": 2}, "end_turn", None),
        ([Content("x")], {"matched": "END"}, "stop_sequence", "END"),
        ([Content("x")], {"reason": "length", "count": 100}, "max_tokens", None),
        ([Content("x")], {"reason": "length", "count": 99}, "model_context_window_exceeded", None),
        ([CallStart(0, "f"), CallArguments(0, "{}")], {}, "tool_use", None),
        ([CallStart(0, "f"), CallArguments(0, '{"a": 1, "b')], {"reason": "length", "count": 100}, "max_tokens", None),
        ([], {}, "end_turn", None),
    ],
)
def test_stop_reasons(pieces: list[Piece], end: dict[str, Any], reason: str, sequence: str | None) -> None:
    found, body = streamed(renderer(pieces), 1, **end), whole(renderer(pieces), **end)
    assert found[-2]["delta"] == {"stop_reason": reason, "stop_sequence": sequence}
    assert (body["stop_reason"], body["stop_sequence"]) == (reason, sequence)
    assert found[-2]["usage"] == body["usage"]
    assert found[-1] == {"type": "message_stop"}


def test_a_client_that_takes_one_call_gets_no_second() -> None:
    made = MessageRenderer(MessageShape(ChatFormat(), "toy", 100, False), RID, 5, choice_of(MIXED, is_single=True))
    assert [block["type"] for block in gathered(streamed(made, 4))] == ["thinking", "text", "tool_use", "text"]


@pytest.mark.parametrize(("pieces", "tokens"), [(MIXED, 4), ([Content("x")], 0)])
def test_tokens_of_thinking_are_counted(pieces: list[Piece], tokens: int) -> None:
    """Up to the one that ends it, if the parser has found any thinking."""
    ids = [1, 2, 3, END_OF_THINKING, 4]
    made = renderer(pieces)
    made.take_ids(0, ids[:2])
    made.take_ids(0, ids[2:])
    used = streamed(made, 1)[-2]["usage"]
    assert used["output_tokens_details"] == {"thinking_tokens": tokens}
    choice = ChoiceOutput(parts=["x"], ids=ids, finish=finish())
    assert json.loads(renderer(pieces).whole([choice], b"", b""))["usage"] == used


def test_an_error_is_the_last_event() -> None:
    made = renderer([Content("x")])
    payload = made.first(0) + made.delta(0, "x", None, b"")
    payload += made.error(RequestError(503, "engine_failed", "gone")) + made.end_of_stream
    assert events(payload)[-1] == {"type": "error", "error": {"type": "overloaded_error", "message": "gone"}}
    assert events(made.keep_alive) == [{"type": "ping"}]


def test_a_shape_survives_its_record() -> None:
    shape = MessageShape(ChatFormat(), "toy", 7, True)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(shape), type=MessageShape) == shape


@pytest.mark.parametrize(
    ("text", "completed"),
    [
        ("", {}),
        ('{"a": 1}', {"a": 1}),
        ('{"a": 1, "b"', {"a": 1}),
        ('{"a": 1, "b": "x, }', {"a": 1}),
        ('{"a": {"b": [1, {"c": 2', {"a": {"b": [1, {}]}}),
        ('{"a": "\\"}, ", "b": tr', {"a": '"}, '}),
        ('{"a": "\\\\", "b', {"a": "\\"}),
        ("[1, 2]", {}),
        ("}}", {}),
        ("nothing", {}),
        ("[" * 100_000, {}),
    ],
)
def test_an_object_that_was_cut_off(text: str, completed: dict[str, Any]) -> None:
    assert completed_object(text) == completed


def test_every_beginning_of_an_object_gives_an_object() -> None:
    text = json.dumps({"a": [1, {"b": 'c\\"d'}, None], "e": {"f": {}}, "g": -1.5e3})
    sizes = [len(completed_object(text[:end])) for end in range(len(text) + 1)]
    assert sizes == sorted(sizes), "members are added one after another"
    assert completed_object(text) == json.loads(text)
