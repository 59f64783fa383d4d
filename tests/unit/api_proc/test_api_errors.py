"""Every refusal: its status, OpenAI's nested shape, and the field it names."""

import asyncio
import json
from typing import Any

import pytest
from fake_engine import FakeEngine

from api_proc.server.service import Timeouts
from quartet.wire.errors import RequestError

MESSAGES = [{"role": "user", "content": "hi"}]
CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
HUGE = 10**30


def assert_error(body: Any, code: str | None = None, param: str | None = None) -> None:
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    assert "/" not in body["error"]["message"].replace("and/or", "") and "Traceback" not in body["error"]["message"]
    if code:
        assert body["error"]["code"] == code
    if param:
        assert body["error"]["param"] == param


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
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"response_format": "text"}, "response_format"),
        ({"regex": "a+"}, "regex"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
    ],
)
async def test_chat_refuses_what_it_cannot_do(api: Any, fields: dict[str, Any], param: str) -> None:
    status, body, _ = await api.post(CHAT, {"messages": MESSAGES, **fields})
    assert status == 400
    assert_error(body, "unsupported_parameter", param)
    assert "not supported yet" in body["error"]["message"]


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
        ({"echo": True, "logprobs": 1}, "echo"),
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


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"nonsense",
        b'{"messages": [], "temperature": NaN}',
        b'{"messages": [], "temperature": Infinity}',
        b'{"messages": [{"role": "user", "content": "\xff\xfe"}]}',
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b'\xef\xbb\xbf{"messages": []}',
        b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
async def test_a_body_that_is_not_json(api: Any, raw: bytes) -> None:
    status, body, _ = await api.post(CHAT, data=raw)
    assert status == 400
    assert_error(body, "invalid_json")


@pytest.mark.parametrize("raw", [b"[]", b"5", b"null", b'"x"', b'{"messages": [], "temperature": 1e400}'])
async def test_json_of_the_wrong_kind(api: Any, raw: bytes) -> None:
    status, body, _ = await api.post(CHAT, data=raw)
    assert status == 400
    assert_error(body, "invalid_value")


async def test_nul_and_duplicate_and_unknown_keys_are_accepted(api: Any) -> None:
    raw = b'{"messages":[{"role":"user","content":"a\\u0000b"}],"n":9,"n":1,"user":"u","meta":{"a":[1]},"stop":null}'
    status, body, _ = await api.post(CHAT, data=raw)
    assert status == 200
    assert len(body["choices"]) == 1
    sent = json.loads(api.engine.outputs[0].request.prompt.messages)
    assert sent[0]["content"] == "a\x00b"


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
    assert headers["Allow"] == "POST"


@pytest.mark.parametrize("is_chunked", [False, True])
async def test_a_huge_body_is_413(make_api: Any, is_chunked: bool) -> None:
    api = await make_api(max_body_bytes=2048)

    async def pieces() -> Any:
        for _ in range(8):
            yield b"x" * 1024

    status, body, _ = await api.post(CHAT, data=pieces() if is_chunked else b"x" * 8192)
    assert status == 413
    assert_error(body, "request_too_large")
    status, _, _ = await api.post(CHAT, {"messages": MESSAGES})
    assert status == 200


async def test_a_declared_huge_body_is_refused_before_it_is_read(make_api: Any) -> None:
    api = await make_api(max_body_bytes=2048)
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n")
    async with asyncio.timeout(2):
        assert (await reader.readline()).startswith(b"HTTP/1.1 413")
    writer.close()


async def test_a_body_that_never_comes_is_408(make_api: Any) -> None:
    api = await make_api(Timeouts(body_s=0.1))
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
    async with asyncio.timeout(2):
        assert (await reader.readline()).startswith(b"HTTP/1.1 408")
    writer.close()


@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_refusal_of_the_engine_comes_before_any_200(api: Any, is_stream: bool) -> None:
    api.engine.refusal = RequestError(503, "queue_full", "try later", retry_after_s=2.4)
    status, body, headers = await api.post(CHAT, {"messages": MESSAGES, "stream": is_stream})
    assert status == 503
    assert headers["Retry-After"] == "3"
    assert_error(body, "queue_full")
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


ROUTES = [
    ("POST", CHAT),
    ("POST", COMPLETIONS),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/toy"),
    ("GET", "/metrics"),
    ("GET", "/topology"),
    ("GET", "/nothing"),
    ("GET", "//v1/models"),
    ("GET", "/health/../v1/models"),
    ("GET", "/health/%2e%2e/v1/models"),
    ("POST", "/health"),
    ("HEAD", "/v1/models"),
    ("OPTIONS", CHAT),
]
PUBLIC = [("GET", "/health"), ("GET", "/ready"), ("GET", "/"), ("HEAD", "/health")]


async def _raw_status(port: int, method: str, path: str, key: str | None, host: str = "x") -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", "Connection: close", "Content-Length: 0"]
    if key is not None:
        lines.append(f"Authorization: {key}")
    writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
    line = await reader.readline()
    writer.close()
    return int(line.split()[1])


@pytest.mark.parametrize("key", [None, "", "Bearer", "Bearer wrong", "Basic key-one", "key-one", "Bearer key-on"])
async def test_without_a_key_only_public_routes_answer(make_api: Any, key: str | None) -> None:
    api = await make_api(api_key=("key-one", "key-two"))
    for method, path in ROUTES:
        assert await _raw_status(api.port, method, path, key) == 401, (method, path)
        assert await _raw_status(api.port, method, path, key, host="x/health") == 401
    for method, path in PUBLIC:
        assert await _raw_status(api.port, method, path, key) == 200, (method, path)


@pytest.mark.parametrize("key", ["Bearer key-one", "bearer key-two"])
async def test_with_any_of_the_keys_every_route_answers(make_api: Any, key: str) -> None:
    api = await make_api(api_key=("key-one", "key-two"))
    for method, path in ROUTES + PUBLIC:
        assert await _raw_status(api.port, method, path, key) != 401, (method, path)


async def test_401_has_the_nested_shape(make_api: Any) -> None:
    api = await make_api(api_key=("k",))
    status, body, headers = await api.get("/v1/models")
    assert status == 401
    assert_error(body, "invalid_api_key")
    assert headers["WWW-Authenticate"] == "Bearer"


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
