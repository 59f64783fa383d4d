"""What clients write stays out of logs, labels and other people's answers; what could fetch or embed is refused."""

import asyncio
import logging
import pickle
from typing import Any

import pytest
from error_shape import CHAT, COMPLETIONS, MESSAGES, assert_error

ESCAPES = "\x1b[31mred\nERROR forged line\r\x00"


def part(kind: str, **fields: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": kind, **fields}]}]


@pytest.mark.parametrize(
    "messages",
    [
        part("image_url", image_url={"url": "http://169.254.169.254/latest"}),
        part("image_url", image_url={"url": "file:///etc/passwd"}),
        part("input_audio", input_audio={"data": "AAAA", "format": "wav"}),
        part("video_url", video_url={"url": "http://[::1]:22/"}),
        part("file", file={"file_data": "AAAA"}),
    ],
)
async def test_nothing_is_fetched(api: Any, messages: Any) -> None:
    status, body, _ = await api.post(CHAT, {"messages": messages})
    assert status == 400
    assert_error(body, "unsupported_parameter", "messages[0].content[0].type")
    assert not api.engine.outputs


@pytest.mark.parametrize("field", ["prompt_embeds", "multi_modal_data", "chat_template"])
@pytest.mark.parametrize("route", [CHAT, COMPLETIONS])
async def test_tensors_and_templates_of_clients_are_refused(api: Any, field: str, route: str) -> None:
    status, body, _ = await api.post(route, {"messages": MESSAGES, "prompt": "x", field: "gASVAAA="})
    assert status == 400
    assert_error(body, "unsupported_parameter", field)


async def test_a_pickle_is_no_body(api: Any) -> None:
    for protocol in range(6):
        status, body, _ = await api.post(CHAT, data=pickle.dumps({"messages": MESSAGES}, protocol))
        assert status == 400
        assert_error(body, "invalid_json")


@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
async def test_no_other_origin_is_admitted(make_api: Any, method: str) -> None:
    for keys in ((), ("k",)):
        api = await make_api(api_key=keys)
        headers = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
        for path in (CHAT, "/v1/models", "/health"):
            async with api.http.request(method, api.url + path, headers=headers) as response:
                assert not [name for name in response.headers if name.lower().startswith("access-control")]


async def test_what_a_client_writes_makes_no_line_of_the_log(api: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    api.engine.refusal = KeyError("bug")
    for body in (
        {"messages": MESSAGES, "model": ESCAPES},
        {"messages": [{"role": "user", "content": ESCAPES}]},
        {"messages": [{"role": ESCAPES, "content": "x"}]},
        {"messages": MESSAGES, ESCAPES: 1},
        {"messages": MESSAGES, "cache_salt": ESCAPES, "routing_key": ESCAPES},
    ):
        await api.post(CHAT, body)
    ours = [record for record in caplog.records if record.name.startswith(("api_proc", "quartet"))]
    assert ours, "the bug is logged"
    for record in ours:
        assert not set("\x1b\r\n\x00") & set(record.getMessage()), record
        assert "forged" not in record.getMessage()


@pytest.mark.parametrize("header", [b"X-Request-Id", b"User-Agent", b"Authorization"])
async def test_escapes_in_headers_come_back_in_none(api: Any, caplog: pytest.LogCaptureFixture, header: bytes) -> None:
    caplog.set_level(logging.DEBUG)
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + header + b": a\x1b[31mb\r\n\r\n")
    async with asyncio.timeout(5):
        answer = await reader.read()
    writer.close()
    assert answer.startswith(b"HTTP/1.") and b"\x1b" not in answer
    assert not [record for record in caplog.records if "\x1b" in record.getMessage()]


async def test_labels_come_from_closed_sets(api: Any) -> None:
    async def lines() -> int:
        _, text, _ = await api.get("/metrics")
        return len(text.splitlines())

    async def some(number: int) -> None:
        await api.post(CHAT, {"messages": MESSAGES, "model": f"model-{number}"})
        await api.get(f"/no/such/route/{number}")
        await api.get(f"/v1/models/model-{number}")
        async with api.http.request(f"METHOD{number}", api.url + "/health"):
            pass

    await some(0)
    # The first exposition is itself counted in the next.
    await lines()
    before = await lines()
    for number in range(1, 40):
        await some(number)
    assert await lines() == before
