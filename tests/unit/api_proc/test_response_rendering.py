"""Responses as OpenAI's events and bodies: items, numbers, usage; streamed and whole ones agree."""

import json
from typing import Any

import msgspec
import pytest
from fake_engine import finish, logprob_of
from scripted_parser import END_OF_THINKING, MIXED, RID, ScriptedParser, choice_of

from api_proc.openai.chat_format import ChatFormat
from api_proc.parsing.pieces import CallArguments, CallStart, Content, Piece, Reasoning
from api_proc.responses.rendering import ResponseRenderer, ResponseShape
from api_proc.server.rendering import ChoiceOutput
from quartet.wire.errors import RequestError

ITEMS = {"message": "output_text", "reasoning": "reasoning_text", "function_call": "function_call_arguments"}


def renderer(pieces: list[Piece], is_single: bool = False) -> ResponseRenderer:
    shape = ResponseShape(ChatFormat(), 17, b'{"model": "toy", "tools": []}')
    return ResponseRenderer(shape, RID, 5, choice_of(pieces, is_single))


def events(payload: bytes) -> list[Any]:
    """Return the data of the events, whose `event` lines say the same, and which are numbered."""
    found = []
    for event in payload.decode().split("\n\n")[:-1]:
        name, data = event.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
        assert found[-1]["sequence_number"] == len(found) - 1
    return found


def streamed(made: ResponseRenderer, pieces: int, **end: Any) -> list[Any]:
    payload = made.first(0) + b"".join(made.delta(0, "x", None, b"") for _ in range(pieces))
    return events(payload + made.finish(0, finish(**end), b"") + made.end_of_stream)


def whole(made: ResponseRenderer, **end: Any) -> Any:
    return json.loads(made.whole([ChoiceOutput(finish=finish(**end))], b"", b""))


def check_items(found: list[Any]) -> list[Any]:
    """Return the finished items; each has been added, has got its text in pieces, and is what these make."""
    items, texts = [], dict[str, str]()
    for event in found:
        kind = event["type"].removeprefix("response.")
        if kind == "output_item.added":
            assert event["output_index"] == len(items)
            assert event["item"]["status"] == "in_progress"
            texts[event["item"]["id"]] = ""
        elif kind.endswith(".delta"):
            texts[event["item_id"]] += event["delta"]
        elif kind == "output_item.done":
            item = event["item"]
            items.append(item)
            text = item["arguments"] if item["type"] == "function_call" else item["content"][0]["text"]
            assert text == texts[item["id"]]
        elif kind.endswith("text.done"):
            assert event["text"] == texts[event["item_id"]]
        elif kind.endswith("arguments.done"):
            assert event["arguments"] == texts[event["item_id"]]
    assert len(texts) == len(items), "ids are different, and every item is done"
    return items


def test_streamed_and_whole_responses_have_the_same_items() -> None:
    found, body = streamed(renderer(MIXED), 4), whole(renderer(MIXED))
    assert check_items(found) == body["output"] == found[-1]["response"]["output"]
    assert [item["type"] for item in body["output"]] == [
        "reasoning",
        "message",
        "function_call",
        "function_call",
        "message",
    ]
    reasoning, message, call, other, _ = body["output"]
    assert reasoning["content"] == [{"type": "reasoning_text", "text": "Let me think."}]
    assert message["content"][0] == {
        "type": "output_text",
        "text": "I call wörld\n",
        "annotations": [],
        "logprobs": [],
    }
    assert (call["name"], json.loads(call["arguments"])) == ("get_weather", {"city": "Paris", "days": [1, 2]})
    assert call["call_id"].startswith("call_") and call["call_id"] != other["call_id"]
    assert {item["status"] for item in body["output"]} == {"completed"}


@pytest.mark.parametrize("first", [Content("x"), Reasoning("x"), CallStart(0, "f")])
def test_the_events_of_an_item(first: Piece) -> None:
    found = streamed(renderer([first]), 1)
    item = found[2]["item"]["type"]
    text = ITEMS[item]
    named = [f"response.{text}.delta", f"response.{text}.done"][isinstance(first, CallStart) :]
    parts = [] if item == "function_call" else ["response.content_part.added"]
    assert [event["type"] for event in found] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        *parts,
        *named,
        *(part.replace("added", "done") for part in parts),
        "response.output_item.done",
        "response.completed",
    ]


def test_an_answer_without_output_is_an_empty_message() -> None:
    body = whole(renderer([]))
    assert [item["content"][0]["text"] for item in body["output"]] == [""]
    assert check_items(streamed(renderer([]), 0)) == body["output"]


@pytest.mark.parametrize(("reason", "status"), [("stop", "completed"), ("length", "incomplete")])
def test_the_end(reason: str, status: str) -> None:
    found, body = streamed(renderer(MIXED[:3]), 3, reason=reason, count=7), whole(renderer(MIXED[:3]), reason=reason)
    assert found[-1]["type"] == f"response.{status}"
    response = found[-1]["response"]
    assert response["status"] == body["status"] == status
    assert response["incomplete_details"] == (None if status == "completed" else {"reason": "max_output_tokens"})
    assert [item["status"] for item in body["output"]] == ["completed", status]
    assert response["usage"] == {
        "input_tokens": 5,
        "input_tokens_details": {"cached_tokens": 3, "cache_write_tokens": 0},
        "output_tokens": 7,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 12,
    }


def test_log_probabilities_come_with_the_text_of_their_tokens() -> None:
    """Those of thinking and calls belong to no text; a parser that holds text back holds them back, too."""

    class Slow(ScriptedParser):
        def push(self, text: str) -> list[Piece]:
            return super().push(text) if text else []

    made = renderer([])
    made._parsed.parser = Slow([Reasoning("r"), Content("ab"), Content("c"), CallStart(0, "f"), CallArguments(0, "{}")])
    entries = {text: [logprob_of(text, 1, 0)] for text in "rabcf"}
    payload = made.first(0) + made.delta(0, "r", entries["r"], b"")
    payload += made.delta(0, "", entries["a"], b"") + made.delta(0, "b", entries["b"], b"")
    payload += made.delta(0, "c", entries["c"], b"") + made.delta(0, "f", entries["f"], b"")
    found = events(payload + made.finish(0, finish(), b""))
    deltas = [event for event in found if event["type"] == "response.output_text.delta"]
    assert [[entry["token"] for entry in event["logprobs"]] for event in deltas] == [["a", "b"], ["c"]]
    message = check_items(found)[1]
    assert [entry["token"] for entry in message["content"][0]["logprobs"]] == ["a", "b", "c"]


def test_tokens_of_thinking_are_counted() -> None:
    choice = ChoiceOutput(parts=["x"], ids=[1, 2, END_OF_THINKING, 4], finish=finish())
    used = json.loads(renderer(MIXED).whole([choice], b"", b""))["usage"]
    assert used["output_tokens_details"] == {"reasoning_tokens": 3}


def test_an_error_ends_a_stream() -> None:
    made = renderer([Content("x")])
    payload = made.first(0) + made.delta(0, "x", None, b"")
    found = events(payload + made.error(RequestError(408, "deadline_exceeded", "late")) + made.end_of_stream)
    assert [event["type"] for event in found[-2:]] == ["error", "response.failed"]
    assert (found[-2]["code"], found[-2]["message"], found[-2]["error"]["code"]) == (
        "deadline_exceeded",
        "late",
        "deadline_exceeded",
    )
    assert found[-1]["response"]["error"] == {"code": "deadline_exceeded", "message": "late"}


def test_a_client_that_takes_one_call_gets_no_second() -> None:
    items = check_items(streamed(renderer(MIXED, is_single=True), 4))
    assert [item["type"] for item in items] == ["reasoning", "message", "function_call", "message"]


def test_a_shape_survives_its_record() -> None:
    shape = ResponseShape(ChatFormat(), 17, b"{}")
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(shape), type=ResponseShape) == shape
