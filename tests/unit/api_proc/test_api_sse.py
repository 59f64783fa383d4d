"""The contract of the event stream: what a client reads, event by event."""

import asyncio
import json
from typing import Any

import aiohttp
import pytest
from fake_engine import WORDS, stay_silent

from api_proc.server.service import Timeouts
from quartet.client.core import Output
from quartet.wire.errors import RequestError

CHAT = {"model": "toy", "messages": [{"role": "user", "content": "hi"}], "stream": True}


def events(text: str) -> list[Any]:
    """Return the decoded events; the last is the string [DONE]."""
    blocks = [block for block in text.split("\n\n") if block and not block.startswith(":")]
    assert all(block.startswith("data: ") for block in blocks)
    return [block[6:] if block == "data: [DONE]" else json.loads(block[6:]) for block in blocks]


async def read_until(response: Any, marker: bytes) -> bytes:
    data = b""
    async with asyncio.timeout(5):
        while marker not in data:
            chunk = await response.content.readany()
            assert chunk, data
            data += chunk
    return data


async def test_chat_stream_frame_by_frame(api: Any) -> None:
    status, text, headers = await api.post("/v1/chat/completions", CHAT)
    assert status == 200
    assert headers["Content-Type"].startswith("text/event-stream")
    assert headers["Cache-Control"] == "no-cache"
    assert headers["X-Accel-Buffering"] == "no"
    assert len(headers["X-Request-Id"]) == 32
    got = events(text)
    assert got[-1] == "[DONE]"
    first, *middle, last = got[:-1]
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [one["choices"][0]["delta"]["content"] for one in middle] == list(WORDS)
    assert last["choices"][0] == {
        "index": 0,
        "delta": {},
        "logprobs": None,
        "finish_reason": "stop",
        "matched_stop": None,
    }
    identities = {(one["id"], one["object"], one["created"], one["model"]) for one in got[:-1]}
    assert identities == {("chatcmpl-" + "0" * 32, "chat.completion.chunk", 1_700_000_000, "toy")}
    assert all(one["choices"][0]["finish_reason"] is None for one in got[:-2])
    assert not any("usage" in one for one in got[:-1])


async def test_choices_are_opened_and_ended_one_by_one(api: Any) -> None:
    _, text, _ = await api.post("/v1/chat/completions", {**CHAT, "n": 3})
    got = events(text)[:-1]
    roles = [one["choices"][0]["index"] for one in got if "role" in one["choices"][0]["delta"]]
    ends = [one["choices"][0]["index"] for one in got if one["choices"][0]["finish_reason"]]
    assert roles == [0, 1, 2]
    assert sorted(ends) == [0, 1, 2]
    for choice in range(3):
        mine = [one["choices"][0]["delta"].get("content", "") for one in got if one["choices"][0]["index"] == choice]
        assert "".join(mine) == "".join(WORDS)


async def test_usage_only_when_asked_and_with_no_choices(api: Any) -> None:
    _, text, _ = await api.post("/v1/chat/completions", {**CHAT, "n": 2, "stream_options": {"include_usage": True}})
    usage = events(text)[-2]
    assert usage["choices"] == []
    assert usage["usage"] == {
        "prompt_tokens": 5,
        "completion_tokens": 8,
        "total_tokens": 13,
        "prompt_tokens_details": {"cached_tokens": 3},
    }
    assert usage["timings"]["queue_ms"] == 2.0
    assert usage["timings"]["prefill_ms"] == 10.0


async def test_continuous_usage_counts_up(api: Any) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    _, text, _ = await api.post("/v1/chat/completions", {**CHAT, "stream_options": options})
    counts = [one["usage"]["completion_tokens"] for one in events(text)[:-1] if "usage" in one]
    assert counts == [1, 2, 3, 4, 4, 4]


async def test_completion_stream_has_no_role_and_echoes(api: Any) -> None:
    body = {"prompt": ["one", "two"], "stream": True, "echo": True, "max_tokens": 2}
    _, text, _ = await api.post("/v1/completions", body)
    got = events(text)[:-1]
    assert {one["object"] for one in got} == {"text_completion"}
    texts = ["", ""]
    for one in got:
        texts[one["choices"][0]["index"]] += one["choices"][0]["text"]
    assert texts == ["oneHello wörld", "twoHello wörld"]
    assert [one["choices"][0]["finish_reason"] for one in got].count("length") == 2


async def test_output_before_the_head_is_out_is_not_lost(api: Any) -> None:
    async def early(output: Any) -> None:
        output.text("early")
        output.finish_all()

    api.engine.script = early
    _, text, _ = await api.post("/v1/chat/completions", CHAT)
    got = events(text)
    assert got[1]["choices"][0]["delta"]["content"] == "early"
    assert got[-1] == "[DONE]"


async def test_matched_stop_and_text_with_the_finish(api: Any) -> None:
    async def script(output: Any) -> None:
        await output.subscribed.wait()
        from fake_engine import finish

        output.push(Output(0, [1, 2], "the end", None, finish("stop", "END", 2)))

    api.engine.script = script
    _, text, _ = await api.post("/v1/chat/completions", CHAT)
    got = events(text)
    assert got[1]["choices"][0]["delta"]["content"] == "the end"
    assert got[2]["choices"][0]["matched_stop"] == "END"


async def test_nothing_is_written_for_text_that_is_held_back(api: Any) -> None:
    async def script(output: Any) -> None:
        await output.subscribed.wait()
        output.push(Output(0, [1], "", None, None))
        output.text("ok")
        output.finish_all()

    api.engine.script = script
    _, text, _ = await api.post("/v1/chat/completions", CHAT)
    assert len(events(text)) == 4


async def test_an_error_midway_is_an_event_and_then_done(api: Any) -> None:
    async def script(output: Any) -> None:
        await output.subscribed.wait()
        await asyncio.sleep(0.01)
        output.text("so far")
        output.fail(RequestError(500, "out_of_memory", "it does not fit"))
        output.text("ignored")

    api.engine.script = script
    status, text, _ = await api.post("/v1/chat/completions", CHAT)
    assert status == 200
    got = events(text)
    assert got[-2] == {
        "error": {"message": "it does not fit", "type": "server_error", "param": None, "code": "out_of_memory"}
    }
    assert got[-1] == "[DONE]"
    assert "ignored" not in text
    assert api.engine.outputs[0].aborted.is_set()


async def test_a_renderer_that_raises_ends_its_own_stream_only(api: Any, monkeypatch: Any) -> None:
    async def script(output: Any) -> None:
        await output.subscribed.wait()
        await asyncio.sleep(0.01)
        output.text("half a pair \ud800")

    api.engine.script = script
    _, text, _ = await api.post("/v1/chat/completions", CHAT)
    got = events(text)
    assert got[-2]["error"]["code"] == "internal_error"
    assert got[-1] == "[DONE]"


async def test_keep_alive_when_silent_and_sooner_in_recovery(make_api: Any) -> None:
    api = await make_api(Timeouts(keep_alive_s=0.3, recovering_s=0.1))
    api.engine.script = stay_silent
    clock = asyncio.get_running_loop().time
    async with api.http.post(api.url + "/v1/chat/completions", json=CHAT) as response:
        start = clock()
        await read_until(response, b": keep-alive\n\n")
        assert 0.25 < clock() - start < 1.0
        api.engine.is_accepting = False
        start = clock()
        await read_until(response, b": keep-alive\n\n")
        await read_until(response, b": keep-alive\n\n")
        assert clock() - start < 0.55
        output = api.engine.outputs[0]
        output.finish_all()
        assert b"[DONE]" in await read_until(response, b"[DONE]")


async def test_logprobs_of_chat_and_completions(api: Any) -> None:
    _, text, _ = await api.post("/v1/chat/completions", {**CHAT, "logprobs": True, "top_logprobs": 2})
    entry = events(text)[2]["choices"][0]["logprobs"]["content"][0]
    assert entry["token"] == " wörld"
    assert bytes(entry["bytes"]).decode() == " wörld"
    assert [one["token"] for one in entry["top_logprobs"]] == ["alt0", "alt1"]
    _, text, _ = await api.post("/v1/completions", {"prompt": "x", "stream": True, "logprobs": 1, "max_tokens": 4})
    offsets = [one["choices"][0]["logprobs"]["text_offset"][0] for one in events(text)[:-2]]
    assert offsets == [0, 5, 11, 13]


async def test_http_1_0_gets_the_plain_bytes(api: Any) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    body = json.dumps(CHAT).encode()
    writer.write(b"POST /v1/chat/completions HTTP/1.0\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    raw = await reader.read()
    writer.close()
    head, _, rest = raw.partition(b"\r\n\r\n")
    assert b"chunked" not in head.lower()
    assert events(rest.decode())[-1] == "[DONE]"


async def test_the_connection_can_be_used_again_after_a_stream(api: Any) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    body = json.dumps(CHAT).encode()
    request = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    async with asyncio.timeout(5):
        for _ in range(2):
            writer.write(request)
            answer = await reader.readuntil(b"\r\n0\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 200") and b"[DONE]" in answer
    writer.close()


async def test_an_error_before_the_head_keeps_its_status(api: Any) -> None:
    async def fail(output: Any) -> None: ...

    api.engine.script = fail
    error = RequestError(500, "out_of_memory", "it does not fit")
    generate = api.engine.generate

    async def generate_and_fail(request: Any) -> Any:
        output = await generate(request)
        subscribe = output.subscribe

        def subscribe_and_fail(on_output: Any, on_error: Any) -> None:
            subscribe(on_output, on_error)
            on_error(error)

        output.subscribe = subscribe_and_fail
        return output

    api.engine.generate = generate_and_fail
    status, body, _ = await api.post("/v1/chat/completions", CHAT)
    assert (status, body["error"]["code"]) == (500, "out_of_memory")
    assert api.engine.outputs[0].aborted.is_set()


async def test_a_bug_in_the_middle_of_a_stream_breaks_the_connection(api: Any, monkeypatch: Any) -> None:
    async def broken(self: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("api_proc.server.sse.EventStream.serve", broken)
    with pytest.raises(aiohttp.ClientError):
        await api.post("/v1/chat/completions", CHAT)
    assert len(api.service.open) == 0
