"""What a client's HTTP library, proxy or a port scan can get wrong below JSON: always OpenAI's error object."""

import asyncio
import gzip
import json
import zlib
from typing import Any

import pytest
from error_shape import assert_error

PROMPT = b'{"prompt": "a", "max_tokens": 1}'
PACKED = gzip.compress(PROMPT, mtime=0)
SCRIPT = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n"
CHUNKED = SCRIPT + b"Transfer-Encoding: chunked\r\n\r\n"

Answer = tuple[int, dict[bytes, bytes], bytes]


def post(body: bytes, *headers: str) -> bytes:
    lines = [*headers, f"Content-Length: {len(body)}"]
    return SCRIPT + "".join(f"{line}\r\n" for line in lines).encode("latin-1") + b"\r\n" + body


async def exchange(api: Any, *pieces: bytes) -> Answer:
    """Send the pieces one by one; return the first response and require nothing else."""
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    try:
        async with asyncio.timeout(5):
            for piece in pieces:
                writer.write(piece)
                await asyncio.sleep(0.02)
            head = await reader.readuntil(b"\r\n\r\n")
            lines = head.split(b"\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines[1:])}
            body = await reader.readexactly(int(headers[b"content-length"]))
        return int(lines[0].split()[1]), headers, body
    finally:
        writer.close()


async def refused(api: Any, status: int, code: str, *pieces: bytes) -> dict[bytes, bytes]:
    got, headers, body = await exchange(api, *pieces)
    assert (got, headers[b"content-type"]) == (status, b"application/json"), body
    assert_error(json.loads(body), code)
    assert not api.engine.outputs
    return headers


@pytest.mark.parametrize(
    "pieces",
    [
        [b"hello\r\n\r\n"],
        [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100)],
        [b"GET /health HTTP/9.9\r\nHost: x\r\n\r\n"],
        [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"],
        [b"GET /health HTTP/1.1\r\n\r\n"],
        [b"GET /health HTTP/1.1\r\nHost: x\r\nExpect: \xe8\r\n\r\n"],
        [b"GET /nothing HTTP/1.1\r\nHost: x\r\nExpect: \xe8\r\n\r\n"],
        [b"GET /health HTTP/1.1\r\nHost: x\r\nBad Header: 1\r\n\r\n"],
        [b"GET /health HTTP/1.1\r\nHost: x\r\nA: a\x00b\r\n\r\n"],
        [b"GET /health HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n"],
        [b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n"],
        [b"GET http://[::1/health HTTP/1.1\r\nHost: x\r\n\r\n"],
        [b"GET http://h:99999/health HTTP/1.1\r\nHost: x\r\n\r\n"],
        [b"GET /health HTTP/1.1\r\nHost: x\r\nSec-WebSocket-Key1: x\r\n\r\n"],
        [SCRIPT + b"Content-Length: -3\r\n\r\nabc"],
        [SCRIPT + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd"],
        [SCRIPT + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"],
        [SCRIPT + b"Transfer-Encoding: morse\r\n\r\nabc"],
        [CHUNKED + b"zz\r\nabc\r\n0\r\n\r\n"],
        [CHUNKED, b"3\r\nabcdef\r\n0\r\n\r\n"],
        [CHUNKED + b'5\r\n{"pro\r\n', b"zz\r\nabc\r\n0\r\n\r\n"],
    ],
)
async def test_malformed_http_is_a_400(api: Any, pieces: list[bytes]) -> None:
    await refused(api, 400, "malformed_http", *pieces)


@pytest.mark.parametrize(
    "lines",
    [
        b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 20_000 + b"\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"a" * 20_000 + b": b\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 300 + b"\r\n",
    ],
)
async def test_headers_beyond_their_bounds_are_a_431(api: Any, lines: bytes) -> None:
    await refused(api, 431, "headers_too_large", lines)


async def test_a_request_in_progress_is_served_before_what_follows_it_is_refused(api: Any) -> None:
    api.engine.accept.clear()
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    async with asyncio.timeout(5):
        for piece in (post(PROMPT), CHUNKED, b"zz\r\n"):
            writer.write(piece)
            await asyncio.sleep(0.02)
        api.engine.accept.set()
        answers = await reader.read()
    writer.close()
    assert answers.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b'"text_completion"' in answers
    assert b"HTTP/1.1 400 Bad Request\r\n" in answers and b'"malformed_http"' in answers
    assert answers.count(b"HTTP/1.") == 2
    assert len(api.engine.outputs) == 1


@pytest.mark.parametrize("path", [b"/v1/completions", b"/nothing"])
async def test_an_unknown_expectation_is_a_417(api: Any, path: bytes) -> None:
    await refused(
        api,
        417,
        "expectation_failed",
        b"POST %b HTTP/1.1\r\nHost: x\r\nExpect: more\r\nContent-Length: 0\r\n\r\n" % path,
    )


@pytest.mark.parametrize("method", ["PUT", "PROPFIND", "DELETE"])
async def test_methods_that_no_route_has(api: Any, method: str) -> None:
    headers = await refused(
        api, 405, "method_not_allowed", f"{method} /v1/completions HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    )
    assert headers[b"allow"] == b"OPTIONS, POST"


async def test_an_address_in_absolute_form_is_served(api: Any) -> None:
    status, _, _ = await exchange(api, b"GET http://elsewhere:80/v1/models HTTP/1.1\r\nHost: x\r\n\r\n")
    assert status == 200


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", PACKED),
        ("GZIP", PACKED),
        ("x-gzip", PACKED),
        ("gzip", gzip.compress(PROMPT[:7], mtime=0) + gzip.compress(PROMPT[7:], mtime=0)),
        ("deflate", zlib.compress(PROMPT)),
        ("deflate", raw_deflate(PROMPT)),
        ("identity", PROMPT),
        ("", PROMPT),
    ],
)
@pytest.mark.parametrize("cut", [0, 9])
async def test_compressed_bodies_are_served(api: Any, encoding: str, body: bytes, cut: int) -> None:
    whole = post(body, f"Content-Encoding: {encoding}")
    at = len(whole) - len(body) + cut
    status, _, answer = await exchange(api, whole[:at], whole[at:])
    assert status == 200, answer
    assert api.engine.outputs[0].request.prompt.text == "a"


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", PROMPT),
        ("gzip", PACKED[:-1]),
        ("gzip", PACKED[:-8] + bytes([PACKED[-8] ^ 1]) + PACKED[-7:]),
        ("gzip", PACKED + b"more"),
        ("gzip", PACKED + gzip.compress(b"", mtime=0) * 100),
        ("gzip", zlib.compress(PROMPT)),
        ("deflate", PROMPT),
        ("deflate", PACKED),
        ("deflate", zlib.compress(PROMPT)[:-1]),
        ("deflate", zlib.compress(PROMPT)[:-1] + b"\0"),
        ("deflate", raw_deflate(PROMPT)[:-1]),
    ],
)
@pytest.mark.parametrize("cut", [0, 9])
async def test_bodies_that_are_not_what_their_encoding_says(api: Any, encoding: str, body: bytes, cut: int) -> None:
    whole = post(body, f"Content-Encoding: {encoding}")
    at = len(whole) - len(body) + cut
    await refused(api, 400, "invalid_content_encoding", whole[:at], whole[at:])


@pytest.mark.parametrize("encoding", ["br", "zstd", "compress", "morse", "gzip, gzip", "gzip, br", "utf-8"])
async def test_an_unknown_encoding_is_a_415_that_names_the_known_ones(api: Any, encoding: str) -> None:
    headers = await refused(api, 415, "unsupported_content_encoding", post(PROMPT, *[f"Content-Encoding: {encoding}"]))
    assert headers[b"accept-encoding"] == b"gzip, deflate"


async def test_an_encoding_named_twice_is_one_applied_twice(api: Any) -> None:
    await refused(api, 415, "unsupported_content_encoding", post(PACKED, *["Content-Encoding: gzip"] * 2))


@pytest.mark.parametrize(
    "pack", [gzip.compress, zlib.compress, raw_deflate, lambda data: gzip.compress(data[:900]) * 9]
)
async def test_the_body_limit_holds_for_the_decompressed_body(make_api: Any, pack: Any) -> None:
    api = await make_api(max_body_bytes=4096)
    encoding = "gzip" if pack(b"x")[:1] == b"\x1f" else "deflate"
    await refused(api, 413, "request_too_large", post(pack(b" " * 1_000_000), f"Content-Encoding: {encoding}"))
    fits = PROMPT + b" " * (4096 - len(PROMPT))
    status, _, answer = await exchange(api, post(gzip.compress(fits), "Content-Encoding: gzip"))
    assert status == 200, answer
    api.engine.outputs.clear()
    await refused(api, 413, "request_too_large", post(gzip.compress(fits + b" "), "Content-Encoding: gzip"))
