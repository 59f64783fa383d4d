"""Tools and thinking through all processes, answered from a script: fields in pairs, and deaths in mid-call."""

import itertools
import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from api_proc.parsing.families import detect
from api_proc.parsing.pieces import CallArguments, CallStart, Content, Reasoning
from api_proc.parsing.tools import Tool
from tests.support.server import Server
from tests.support.thinking_template import TEMPLATE, chunks_of, message_of

pytestmark = pytest.mark.e2e

REPLY = (
    "<think>\nThe lamp 🎉 is at five, so I look there.\n</think>\n\nI look at the lamp.\n"
    '<tool_call>\n{"name": "look", "arguments": {"what": "the \\"lamp\\" \\n é 🎉", "at": [5, 6]}}\n</tool_call>\n'
    '<tool_call>\n{"name": "find", "arguments": {}}\n</tool_call>'
)
AT = {"type": "object", "properties": {"at": {"enum": [5, 6]}}, "required": ["at"], "additionalProperties": False}
TOOLS: list[Any] = [{"type": "function", "function": {"name": name}} for name in ("look", "find")]
STRICT: list[Any] = [{"type": "function", "function": {"name": "look", "parameters": AT, "strict": True}}]
FORMAT = {"response_format": {"type": "json_schema", "json_schema": {"name": "at", "schema": AT, "strict": True}}}
ASKED = {"messages": [{"role": "user", "content": "What is at five?"}], "seed": 5}

FIELDS: dict[str, list[dict[str, Any]]] = {
    "n": [{}, {"n": 3}],
    "tools": [{}, {"tools": TOOLS}, {"tools": TOOLS, "tool_choice": "none"}, {"tools": TOOLS[:1]},
              {"tools": TOOLS, "parallel_tool_calls": False}, {"tools": STRICT},
              {"tools": STRICT, "tool_choice": "required", "parallel_tool_calls": False},
              {"tools": [*STRICT, TOOLS[1]], "tool_choice": {"type": "function", "function": {"name": "look"}}}],
    "format": [{}, FORMAT],
    "logprobs": [{}, {"logprobs": True}, {"logprobs": True, "top_logprobs": 3}],
    "stop": [{}, {"stop": "five"}, {"stop": ["at the lamp"]}, {"stop": [' "at"', "zzz"]},
             {"stop": "é", "include_stop_str_in_output": True}],
    "limit": [{}, {"max_tokens": 7}, {"max_completion_tokens": 60}],
    "usage": [{}, {"stream_options": {"include_usage": True}},
              {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}],
    "effort": [{}, {"reasoning_effort": "none"}],
    "sampling": [{}, {"temperature": 0}, {"return_token_ids": True}],
}  # fmt: skip


def in_pairs(fields: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return bodies in which every two values of different fields come together."""
    pairs = {
        ((a, i), (b, j))
        for a, b in itertools.combinations(fields, 2)
        for i, j in itertools.product(range(len(fields[a])), range(len(fields[b])))
    }
    bodies = []
    while pairs:
        chosen: dict[str, int] = {}
        for name in fields:
            chosen[name] = max(range(len(fields[name])), key=lambda i, name=name: _gain(pairs, chosen, name, i))  # type: ignore[misc]
        pairs -= {pair for pair in pairs if all(chosen[name] == i for name, i in pair)}
        bodies.append({key: value for name, i in chosen.items() for key, value in fields[name][i].items()})
    return bodies


def _gain(pairs: set[Any], chosen: dict[str, int], name: str, value: int) -> tuple[int, int]:
    """Return how many pairs a value completes, and in how many it is at all."""
    mine = [pair for pair in pairs if (name, value) in pair]
    others = {**chosen, name: value}
    return sum(all(others.get(field) == i for field, i in pair) for pair in mine), len(mine)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("tools")
    with launch(folder, "0") as running:
        yield running


def launch(folder: Path, step_ms: str) -> Server:
    (folder / "template.jinja").write_text(TEMPLATE)
    (folder / "script.json").write_text(json.dumps([{"contains": "", "reply": REPLY}]))
    flags = ["--chat-template", str(folder / "template.jinja"), "--simulated-script", str(folder / "script.json")]
    return Server("--simulated-worker", "--simulated-step-ms", step_ms, *flags)


def expected(text: str, body: dict[str, Any]) -> dict[str, Any]:
    """Return the message that a text makes, read at once."""
    offered = [] if body.get("tool_choice") == "none" else body.get("tools", [])
    parser = detect(TEMPLATE).parser([Tool(tool["function"]["name"], {}) for tool in offered], "")
    parts: dict[str, str] = {"content": "", "reasoning": ""}
    calls: list[list[str]] = []
    for piece in [*parser.push(text), *parser.finish()]:
        match piece:
            case Content(more):
                parts["content"] += more
            case Reasoning(more):
                parts["reasoning"] += more
            case CallStart(_, name):
                calls.append([name, ""])
            case CallArguments(call, more):
                calls[call][1] += more
    return {**parts, "calls": calls[:1] if body.get("parallel_tool_calls") is False else calls}


def check_choice(choice: dict[str, Any], body: dict[str, Any]) -> None:
    text = REPLY
    if stop := body.get("stop"):
        at = min(at for each in ([stop] if isinstance(stop, str) else stop) if (at := text.find(each)) >= 0)
        text = text[: at + body.get("include_stop_str_in_output", 0)]
    message, is_cut = choice["message"], choice["finish_reason"] == "length"  # perhaps in half a character
    if not is_cut:
        assert choice["matched_stop"] == (None if text == REPLY else stop if isinstance(stop, str) else stop[0])
    read = expected(text, body)
    calls = [[call["function"]["name"], call["function"]["arguments"]] for call in message.get("tool_calls", ())]
    for found, wanted in ((message["content"] or "", read["content"]), (message["reasoning"], read["reasoning"])):
        assert wanted.startswith(found.rstrip("\ufffd")) if is_cut else found == wanted
    assert message["reasoning"] == message["reasoning_content"]
    assert calls == read["calls"][: len(calls)] if not is_cut else calls[:-1] == read["calls"][: len(calls[:-1])]
    if not is_cut:
        assert len(calls) == len(read["calls"])
        assert choice["finish_reason"] == ("tool_calls" if calls else "stop")


def check_constrained(choice: dict[str, Any], body: dict[str, Any]) -> None:
    """Check an answer that follows a grammar: thinking, then calls, an object, or with strict tools any text."""
    message, must_call = choice["message"], body.get("tool_choice") not in (None, "none")
    if choice["finish_reason"] == "length" or choice["matched_stop"]:
        return
    calls, is_strict = message.get("tool_calls", []), body.get("tools", TOOLS)[0] in STRICT
    for call in calls:
        arguments = json.loads(call["function"]["arguments"])
        assert arguments in ({"at": 5}, {"at": 6}) if is_strict else isinstance(arguments, dict)
        assert call["function"]["name"] == "look" or not is_strict
    assert len(calls) == 1 or not must_call
    if "response_format" in body and not calls:
        assert json.loads(message["content"]) in ({"at": 5}, {"at": 6})
    is_named = isinstance(body.get("tool_choice"), dict)
    assert choice["finish_reason"] == ("tool_calls" if calls and not is_named else "stop")


def test_the_parsers_in_force_are_named(server: Server) -> None:
    assert any("tool calls hermes, reasoning think" in line for line in server.output)
    status, info = server.get("/server_info")
    assert (status, info["tool_call_parser"], info["reasoning_parser"]) == (200, "hermes", "think")


@pytest.mark.parametrize("body", in_pairs(FIELDS), ids=lambda body: "-".join(body) or "plain")
def test_fields_in_pairs(server: Server, body: dict[str, Any]) -> None:
    status, whole = server.post("/v1/chat/completions", {**ASKED, **body})
    assert status == 200, whole
    status, stream = server.post("/v1/chat/completions", {**ASKED, **body, "stream": True})
    assert status == 200, stream
    chunks = chunks_of(stream)
    has_grammar = "response_format" in body or body.get("tools", TOOLS)[0] in STRICT
    for index, choice in enumerate(whole["choices"]):
        (check_constrained if has_grammar else check_choice)(choice, body)
        streamed = message_of(chunks, index)
        for one in (choice, streamed):
            for call in one["message"].get("tool_calls", ()):
                assert call.pop("id").startswith("call_")
            one.pop("token_ids", None)
        assert streamed == choice
        if body.get("logprobs"):
            tokens = [entry["token"] for entry in choice["logprobs"]["content"]]
            assert len(tokens) * len(whole["choices"]) == whole["usage"]["completion_tokens"]
    if body.get("stream_options"):
        assert chunks[-1]["usage"] == {
            **whole["usage"],
            "prompt_tokens_details": chunks[-1]["usage"]["prompt_tokens_details"],
        }


@pytest.fixture(scope="module")
def slow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with launch(tmp_path_factory.mktemp("slow"), "6") as running:
        yield running


def streamed(server: Server, mark: str = "", name: str = "") -> dict[str, Any]:
    """Stream an answer; kill process `name` as soon as a line has `mark`."""
    body = json.dumps({**ASKED, "tools": TOOLS, "stream": True}).encode()
    request = urllib.request.Request(server.url + "/v1/chat/completions", body, {"content-type": "application/json"})
    lines = []
    with urllib.request.urlopen(request, timeout=60) as response:
        for line in response:
            lines.append(line.decode())
            if mark and mark in lines[-1]:
                server.kill(name)
                mark = ""
    assert not mark
    choice = message_of(chunks_of("".join(line for line in lines if not line.startswith(":"))))
    for call in choice["message"]["tool_calls"]:
        call.pop("id")
    return choice


@pytest.mark.parametrize(
    ("name", "mark"),
    [
        ("worker-0", "é"),
        pytest.param("worker-0", '"name":"look"', marks=pytest.mark.slow),
        pytest.param("worker-0", '"reasoning"', marks=pytest.mark.slow),
        pytest.param("detok-0", '"name":"find"', marks=pytest.mark.slow),
        pytest.param("scheduler-0", '"name":"look"', marks=pytest.mark.slow),
    ],
)
def test_a_death_in_mid_call_changes_nothing(slow_server: Server, name: str, mark: str) -> None:
    calm, restarts = streamed(slow_server), slow_server.topology()[name]["restarts"]
    assert len(calm["message"]["tool_calls"]) == 2
    assert streamed(slow_server, mark, name) == calm
    slow_server.wait_until(lambda: slow_server.is_complete() and slow_server.topology()[name]["restarts"] > restarts)
