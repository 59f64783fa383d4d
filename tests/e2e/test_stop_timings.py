"""Usage, timings and timeline of a request that a stop string ends, which the scheduler learns last."""

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.server import Server

pytestmark = pytest.mark.e2e
PROMPT = "The lighthouse keeper climbed the stairs every evening and lit the lamp. " * 4
PROMPT += "One night the storm was so loud that he"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server("--max-total-tokens", "16384") as running:
        yield running


def ask(server: Server, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """Return the answer, or the event with the usage of a stream, with the choices' ends."""
    status, answer = server.post(path, {**body, "stream_options": {"include_usage": True}})
    assert status == 200, answer
    if not body["stream"]:
        assert isinstance(answer, dict)
        return answer
    events = [json.loads(line[6:]) for line in answer.split("\n\n") if line.startswith("data: {")]
    ends = [choice for event in events for choice in event["choices"] if choice["finish_reason"]]
    return {**events[-1], "choices": ends}


def ended_choices(server: Server, answer_id: str) -> list[dict[str, Any]]:
    """Return the timelines of a request's choices once all have ended: the scheduler hears of a stop string last."""
    deadline_s = time.monotonic() + 5
    while True:
        status, timeline = server.get(f"/requests/{answer_id}/timeline")
        assert status == 200
        choices: list[dict[str, Any]] = timeline["choices"]
        if all(choice["events"][-1]["event"] == "ended" for choice in choices):
            return choices
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_times_add_up_at_a_stop_string(server: Server, path: str, is_stream: bool, n: int) -> None:
    salt = f"{path} {is_stream} {n}"
    body: dict[str, Any] = {"temperature": 0, "max_tokens": 64, "n": n, "stream": is_stream, "cache_salt": salt}
    body["prompt" if path == "/v1/completions" else "messages"] = (
        PROMPT if path == "/v1/completions" else [{"role": "user", "content": PROMPT}]
    )
    server.post(path, {**body, "cache_salt": "warm-up", "stream": False})
    answer = ask(server, path, {**body, "stop": ["."]})
    assert [(end["finish_reason"], end["matched_stop"]) for end in answer["choices"]] == [("stop", ".")] * n
    times = answer["timings"]
    parts = times["queue_ms"] + times["prefill_ms"] + times["decode_ms"]
    assert times["prefill_ms"] > 0 and times["decode_ms"] > 0
    # What is missing is the way to the scheduler and back; the choices of a request may start one after the other.
    assert 0.5 * times["total_ms"] < parts
    assert parts < (1.05 if n == 1 else 1.6) * times["total_ms"]
    assert times["prefill_ms"] <= times["ttft_ms"] or n > 1

    choices = ended_choices(server, answer["id"])
    assert answer["usage"]["completion_tokens"] == sum(choice["output_tokens"] for choice in choices)
    for choice in choices:
        at_s = {event["event"]: event["at_s"] for event in choice["events"]}
        assert choice["events"][-1]["cause"] == "stop_string"
        assert times["queue_ms"] >= 1000 * at_s["admitted"] - 0.1
        # The detokenizer's clock starts when it hears of the request.
        assert times["queue_ms"] + times["prefill_ms"] > 0.8 * 1000 * at_s["first_token"]


def test_a_stop_string_costs_what_a_limit_costs(server: Server) -> None:
    body: dict[str, Any] = {"prompt": PROMPT, "temperature": 0, "max_tokens": 64, "stream": False}
    by_stop = ask(server, "/v1/completions", {**body, "cache_salt": "a", "stop": ["."]})
    count = by_stop["usage"]["completion_tokens"]
    by_limit = ask(server, "/v1/completions", {**body, "cache_salt": "b", "max_tokens": count})
    assert by_limit["usage"] == by_stop["usage"]
    for name in ("prefill_ms", "decode_ms"):
        assert by_stop["timings"][name] == pytest.approx(by_limit["timings"][name], rel=0.9, abs=30)
