"""Every refusal: its status, OpenAI's nested shape, and the field it names."""

import asyncio
import json
from typing import Any

import pytest
from error_shape import CHAT, COMPLETIONS, MESSAGES, assert_error
from fake_engine import FakeEngine

from quartet.wire.errors import RequestError

HUGE = 10**30


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 2**31}, "max_tokens"),
        ({"max_tokens": HUGE}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens"),
        ({"n": 0}, "n"),
        ({"n": 17}, "n"),
        ({"n": HUGE}, "n"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.01}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"min_p": -0.5}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"frequency_penalty": -3}, "frequency_penalty"),
        ({"seed": 2**63}, "seed"),
        ({"seed": -(2**63) - 1}, "seed"),
        ({"seed": "x"}, "seed"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": "x" * 257}, "stop"),
        ({"stop": [1]}, "stop[0]"),
        ({"stop_token_ids": [1000]}, "stop_token_ids"),
        ({"stop_token_ids": [-1]}, "stop_token_ids"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"1000": 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": 1}, "logprobs"),
        ({"priority": 2**31}, "priority"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": -1}, "timeout"),
        ({"first_token_timeout": 0}, "first_token_timeout"),
        ({"first_token_timeout": 1e9}, "first_token_timeout"),
        ({"cache_salt": "x" * 129}, "cache_salt"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": [{"content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "robot", "content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"continue_final_message": True}, "continue_final_message"),
    ],
)
async def test_chat_names_the_field_at_fault(api: Any, fields: dict[str, Any], param: str) -> None:
    status, body, _ = await api.post(CHAT, {"messages": MESSAGES, **fields})
    assert status == 400
    assert_error(body, "invalid_value", param)
    assert body["error"]["type"] == "invalid_request_error"
    assert not api.engine.outputs


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "structural_tag"}}, "response_format.type"),
        ({"structural_tag": "{}"}, "structural_tag"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
    ],
)
async def test_chat_refuses_what_it_cannot_do(api: Any, fields: dict[str, Any], param: str) -> None:
    status, body, _ = await api.post(CHAT, {"messages": MESSAGES, **fields})
    assert status == 400
    assert_error(body, "unsupported_parameter", param)
    assert "not supported" in body["error"]["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [""]}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": [1, [2]]}, "prompt"),
        ({"prompt": [1000]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [HUGE]}, "prompt"),
        ({"prompt": [1.5]}, "prompt[0]"),
        ({"prompt": ["a"] * 513}, "prompt"),
        ({"prompt": ["a"] * 257, "n": 2}, "prompt"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 2**31}, "max_tokens"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 2}, "best_of"),
    ],
)
async def test_completions_name_the_field_at_fault(api: Any, fields: dict[str, Any], param: str) -> None:
    status, body, _ = await api.post(COMPLETIONS, {"prompt": "a", **fields})
    assert status == 400
    assert_error(body, None, param)


async def test_a_prompt_of_ids_over_the_context(api: Any) -> None:
    status, body, _ = await api.post(COMPLETIONS, {"prompt": [1] * 65})
    assert status == 400
    assert_error(body, "context_length_exceeded", "prompt")
    assert "maximum context length is 64 tokens" in body["error"]["message"]


async def test_more_messages_than_the_context_has_tokens(api: Any) -> None:
    status, body, _ = await api.post(CHAT, {"messages": MESSAGES * 65})
    assert status == 400
    assert_error(body, "context_length_exceeded", "messages")
    assert (await api.post(CHAT, {"messages": MESSAGES * 64}))[0] == 200


async def test_unknown_model_lists_what_is_served(api: Any) -> None:
    for path, more in ((CHAT, {"messages": MESSAGES}), (COMPLETIONS, {"prompt": "x"})):
        status, body, _ = await api.post(path, {"model": "gpt-9", **more})
        assert status == 404
        assert_error(body, "model_not_found", "model")
        assert "toy" in body["error"]["message"]
    status, body, _ = await api.get("/v1/models/org%2Fother")
    assert status == 404
    assert_error(body, "model_not_found")


async def test_wrong_route_and_method(api: Any) -> None:
    status, body, _ = await api.get("/v1/nothing")
    assert status == 404
    assert_error(body, "not_found")
    status, body, headers = await api.get(CHAT)
    assert status == 405
    assert_error(body, "method_not_allowed")
    assert headers["Allow"] == "OPTIONS, POST"


@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_refusal_of_the_engine_comes_before_any_200(api: Any, is_stream: bool) -> None:
    api.engine.refusal = RequestError(503, "engine_restarting", "try later", retry_after_s=2.4)
    status, body, headers = await api.post(CHAT, {"messages": MESSAGES, "stream": is_stream})
    assert status == 503
    assert headers["Retry-After"] == "3"
    assert_error(body, "engine_restarting")
    assert body["error"]["type"] == "server_error"


async def test_one_refused_prompt_aborts_the_others(api: Any) -> None:
    api.engine.refusal = RequestError(503, "queue_full", "try later")
    api.engine.refuse_after = 2
    api.engine.script = lambda output: asyncio.sleep(0)
    status, body, _ = await api.post(COMPLETIONS, {"prompt": ["a", "b", "c"]})
    assert status == 503
    assert_error(body, "queue_full")
    assert [one.aborted.is_set() for one in api.engine.outputs] == [True, True]


async def test_a_bug_is_a_500_without_details(api: Any) -> None:
    api.engine.refusal = KeyError("/secret/path")
    status, body, headers = await api.post(CHAT, {"messages": MESSAGES})
    assert status == 500
    assert_error(body, "internal_error")
    assert "secret" not in json.dumps(body)
    assert headers["X-Request-Id"]


async def test_an_error_after_acceptance_without_a_stream(api: Any) -> None:
    async def script(output: Any) -> None:
        await output.subscribed.wait()
        output.text("lost")
        output.fail(RequestError(408, "deadline_exceeded", "too late"))

    api.engine.script = script
    status, body, _ = await api.post(CHAT, {"messages": MESSAGES})
    assert status == 408
    assert_error(body, "deadline_exceeded")
    assert api.engine.outputs[0].aborted.is_set()


async def test_the_request_id_is_echoed_or_made(api: Any) -> None:
    for path in ("/v1/models", "/nothing"):
        _, _, headers = await api.get(path, headers={"x-request-id": "abc-1"})
        assert headers["X-Request-Id"] == "abc-1"
    _, _, headers = await api.get("/health", headers={"x-request-id": "x" * 500})
    assert len(headers["X-Request-Id"]) == 32


async def test_draining_refuses_new_requests_only(api: Any) -> None:
    engine: FakeEngine = api.engine

    async def slow(output: Any) -> None:
        await asyncio.sleep(0.1)
        output.text("finished after all")
        output.finish_all()

    engine.script = slow
    open_one = asyncio.ensure_future(api.post(CHAT, {"messages": MESSAGES}))
    await engine.arrived.wait()
    api.service.is_draining = True
    status, body, headers = await api.post(CHAT, {"messages": MESSAGES})
    assert (status, headers["Retry-After"]) == (503, "1")
    assert_error(body, "draining")
    assert (await api.get("/ready"))[0] == 503
    assert (await api.get("/health"))[0] == 200
    status, body, _ = await open_one
    assert status == 200
    assert body["choices"][0]["message"]["content"] == "finished after all"
