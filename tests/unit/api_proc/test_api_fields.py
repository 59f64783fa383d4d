"""Bodies as clients send them, and random bodies: each gives a ResponseTask or a RequestError, and nothing else."""

import json
from typing import Any

import pytest
from aiohttp.test_utils import make_mocked_request
from fake_engine import MODEL, FakeEngine
from hypothesis import given, settings
from hypothesis import strategies as st

from api_proc.openai.chat import chat_task
from api_proc.openai.chat import decoder as chat_decoder
from api_proc.openai.completions import completion_task
from api_proc.openai.completions import decoder as completion_decoder
from api_proc.openai.schema import ChatRequest, CompletionRequest
from api_proc.server.bodies import decode_body
from api_proc.server.service import Service
from quartet.runtime.clock import MonotonicClock
from quartet.wire.config import Config
from quartet.wire.errors import RequestError
from quartet.wire.frames import SamplingParams

MESSAGES = [{"role": "user", "content": "hi"}]


def service() -> Service:
    return Service(
        name="api-0",
        engine=FakeEngine(),
        config=Config(resolved=MODEL),
        clock=MonotonicClock(),
        draw_seed=lambda: 77,
        wall_time=lambda: 0.0,
    )


def chat(headers: dict[str, str] | None = None, **fields: Any) -> Any:
    request = make_mocked_request("POST", "/v1/chat/completions", headers or {})
    body = json.dumps({"messages": MESSAGES, **fields}).encode()
    return chat_task(request, service(), decode_body(chat_decoder, body)).requests[0]


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": []},
        {"tools": None, "tool_choice": "auto"},
        {"tool_choice": "none"},
        {"response_format": {"type": "text"}},
        {"modalities": ["text"]},
        {"regex": ""},
        {"use_beam_search": False},
        {"user": "me", "store": True, "service_tier": "auto", "parallel_tool_calls": True},
        {"stop": None, "seed": None, "n": None, "temperature": None, "stream_options": None},
        {"logprobs": False, "top_logprobs": 0},
        {"temperature": 1, "top_p": 1, "presence_penalty": -2},
    ],
)
def test_fields_that_ask_for_nothing_are_accepted(fields: dict[str, Any]) -> None:
    assert chat(**fields).params.seed == 77


@pytest.mark.parametrize(
    ("fields", "name", "value"),
    [
        ({"max_tokens": 1}, "max_new_tokens", 1),
        ({"max_tokens": 2**31 - 1}, "max_new_tokens", 2**31 - 1),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_new_tokens", 6),
        ({"min_tokens": 8, "max_tokens": 8}, "min_new_tokens", 8),
        ({"seed": 2**63 - 1}, "seed", 2**63 - 1),
        ({"seed": 0}, "seed", 0),
        ({"top_k": 0}, "top_k", 0),
        ({"temperature": 2}, "temperature", 2.0),
        ({"stop": "x" * 256}, "stop", ("x" * 256,)),
        ({"stop": ["a"] * 16}, "stop", ("a",) * 16),
        ({"logprobs": True}, "logprobs", 0),
        ({"logprobs": True, "top_logprobs": 20}, "logprobs", 20),
        ({"logit_bias": {"999": 100, "0": -100}}, "logit_bias", ((999, 100.0), (0, -100.0))),
        ({"skip_special_tokens": False}, "skip_special_tokens", False),
        ({"include_stop_str_in_output": True}, "include_stop_in_output", True),
    ],
)
def test_values_at_the_bounds(fields: dict[str, Any], name: str, value: Any) -> None:
    assert getattr(chat(**fields).params, name) == value


def test_the_deadline_of_body_and_header() -> None:
    assert chat({"x-request-timeout": "2.5"}).deadline_s == 2.5
    assert chat({"x-request-timeout": "2.5"}, timeout=3).deadline_s == 3
    for bad in ("soon", "nan", "inf", "-1", "0"):
        with pytest.raises(RequestError) as caught:
            chat({"x-request-timeout": bad})
        assert caught.value.param == "timeout"


def test_priority_header_goes_before_the_body() -> None:
    assert chat(priority=2).priority == 2
    assert chat({"x-override-priority": "5"}, priority=2).priority == 5
    with pytest.raises(RequestError):
        chat({"x-override-priority": "high"})


def test_continuing_the_last_message() -> None:
    messages = [*MESSAGES, {"role": "assistant", "content": "So"}]
    prompt = chat(messages=messages, continue_final_message=True).prompt
    assert (prompt.continue_final_message, prompt.add_generation_prompt) == (True, False)
    prompt = chat(add_generation_prompt=False).prompt
    assert (prompt.continue_final_message, prompt.add_generation_prompt) == (False, False)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


def bodies(kind: type, needed: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    names = st.sampled_from(kind.__struct_fields__)  # type: ignore[attr-defined]
    return st.dictionaries(names, values, max_size=3).map(lambda fields: {**needed, **fields})


def check(task: Any) -> None:
    for request in task.requests:
        params: SamplingParams = request.params
        assert 1 <= request.n <= 16
        assert 0 <= params.temperature <= 2
        assert 0 < params.top_p <= 1
        assert 0 <= params.seed < 2**63
        assert -1 <= params.logprobs <= 20
        assert params.max_new_tokens is None or 0 <= params.max_new_tokens < 2**31
        assert all(0 <= token < MODEL.vocab_size for token, _ in params.logit_bias)


@settings(max_examples=150, deadline=None)
@given(bodies(ChatRequest, {"messages": MESSAGES}))
def test_any_chat_body_is_a_task_or_a_refusal(body: dict[str, Any]) -> None:
    request = make_mocked_request("POST", "/v1/chat/completions")
    try:
        check(chat_task(request, service(), decode_body(chat_decoder, json.dumps(body).encode())))
    except RequestError as error:
        assert error.status in (400, 404)


@settings(max_examples=150, deadline=None)
@given(bodies(CompletionRequest, {"prompt": "x"}))
def test_any_completion_body_is_a_task_or_a_refusal(body: dict[str, Any]) -> None:
    request = make_mocked_request("POST", "/v1/completions")
    try:
        check(completion_task(request, service(), decode_body(completion_decoder, json.dumps(body).encode())))
    except RequestError as error:
        assert error.status in (400, 404)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_a_request_or_a_refusal(raw: bytes) -> None:
    try:
        decode_body(chat_decoder, raw)
    except RequestError as error:
        assert error.status == 400
