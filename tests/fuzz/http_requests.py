"""`python -m tests.fuzz.http_requests --seconds N [--seed S]`: requests to every route of a launch, whole or damaged.

Each gets a response below 500 (or 503), which is a valid one; no process restarts, nothing is logged with a stack, and
the service answers as ever afterwards.
"""

import argparse
import collections
import gzip
import itertools
import json
import socket
import sys
import threading
import zlib
from collections.abc import Iterator
from random import Random
from typing import Any
from urllib.parse import urlsplit

import msgspec

from api_proc.anthropic.schema import CountRequest, MessageRequest
from api_proc.openai.schema import ChatRequest, CompletionRequest
from api_proc.responses.schema import ResponseRequest
from tests.fuzz.guarded import Finding, until
from tests.fuzz.mutants import hostile, mutate, mutate_bytes, to_json
from tests.support.server import Server

FLAGS = ("--simulated-worker", "--context-length", "256", "--max-total-tokens", "8192")
CLIENTS = 12
QUIET_S, LIMIT_S = 2.0, 60.0
RID = "0000000000000000000000000000000a"
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
MESSAGE, COUNT, RESPONSE = "/v1/messages", "/v1/messages/count_tokens", "/v1/responses"
ROUTES = (
    *(CHAT,) * 5,
    *(TEXT,) * 5,
    *(MESSAGE, COUNT, RESPONSE) * 3,
    *("/v1/models", "/v1/models/smollm2", "/health", "/ready", "/metrics", "/topology", "/trace", "/config"),
    *(
        f"/v1/streams/{RID}",
        f"/v1/streams/chatcmpl-{RID}?starting_after=3",
        "/v1/streams/x",
        f"/requests/{RID}/timeline",
    ),
    *("/requests/00/timeline", "/flush_cache", "/", "/nothing", "/v1/", "//v1/models", "/%2e%2e/x", "*", "/\u00e9"),
)
METHODS = ("GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "BREW", "get", "")
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "Hello"}]},
    {"role": "assistant", "content": "Hi"},
    {"role": "user", "content": "What is 1 + 1?"},
]
BLOCKS = [
    {"role": "user", "content": "Hello"},
    {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "hm", "signature": "x"},
            {"type": "text", "text": "Hi"},
            {"type": "tool_use", "id": "t", "name": "look", "input": {"at": [1, {"a": None}]}},
        ],
    },
    {
        "role": "user",
        "content": [{"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "x"}]}],
    },
]
ITEMS = [
    {"role": "user", "content": [{"type": "input_text", "text": "Hello"}]},
    {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
    {"type": "function_call", "call_id": "t", "name": "look", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "t", "output": "x"},
]
BODIES: dict[str, dict[str, Any]] = {
    MESSAGE: {"model": "smollm2", "messages": BLOCKS, "max_tokens": 5, "system": [{"type": "text", "text": "x"}]},
    COUNT: {"model": "smollm2", "messages": BLOCKS, "thinking": {"type": "enabled", "budget_tokens": 5}},
    RESPONSE: {"model": "smollm2", "input": ITEMS, "max_output_tokens": 5, "top_logprobs": 2},
    CHAT: {"model": "smollm2", "messages": MESSAGES, "max_tokens": 5, "logprobs": True, "top_logprobs": 2},
    TEXT: {"model": "smollm2", "prompt": "Hello", "max_tokens": 5, "logprobs": 2, "echo": True, "n": 2},
}
FIELDS = {
    MESSAGE: [field.name for field in msgspec.structs.fields(MessageRequest)],
    COUNT: [field.name for field in msgspec.structs.fields(CountRequest)],
    RESPONSE: [field.name for field in msgspec.structs.fields(ResponseRequest)],
    CHAT: [field.name for field in msgspec.structs.fields(ChatRequest)],
    TEXT: [field.name for field in msgspec.structs.fields(CompletionRequest)],
}
HEADERS = (
    "Content-Type: application/json",
    "Content-Type: text/plain; charset=utf-16",
    "Content-Type: multipart/form-data",
    "Authorization: Bearer x",
    "Authorization: \xff",
    "X-Request-Id: " + "x" * 300,
    "X-Request-Id: a\tb",
    f"X-Request-Id: {RID}",
    f"X-Request-Id: {RID}",
    f"Last-Event-ID: {RID}:2",
    "Last-Event-ID: 999999999999",
    "X-Quartet-Resume: 30",
    "X-Quartet-Resume: 0.01",
    "X-Quartet-Resume: nan",
    "Last-Event-ID: \xff:-1",
    "Accept-Encoding: gzip, br;q=1.0, *;q=0",
    "Accept: text/event-stream",
    "Content-Encoding: gzip",
    "Content-Encoding: deflate",
    "Content-Encoding: gzip, gzip",
    "Transfer-Encoding: chunked",
    "Transfer-Encoding: gzip, chunked",
    "Content-Length: 5",
    "Content-Length: -1",
    "Content-Length: 99999999999999999999",
    "Expect: 100-continue",
    "Expect: 200-maybe",
    "Connection: upgrade",
    "Upgrade: websocket",
    "Host: y",
    "A: " + "a" * 20_000,
    "Bad Header: 1",
    "Range: bytes=0-1",
)


# Requests


def request_bytes(draw: Random) -> bytes:
    """Return one request, which may be anything."""
    path = draw.choice(ROUTES)
    body = _body(path, draw)
    method = "POST" if path in BODIES or path == "/flush_cache" else "GET"
    if draw.random() < 0.06:
        method = draw.choice(METHODS)
    if draw.random() < 0.06:
        path += draw.choice(("?a=b", "?" + "x" * 5000, "/", "%00", "%ff", "\\x", "#y", "?\x01", " x", ";a"))
    headers = ["Host: x"] if draw.random() < 0.98 else []
    headers += ["Connection: close"] if draw.random() < 0.97 else []
    headers += [draw.choice(HEADERS) for _ in range(draw.choice((0, 0, 1, 1, 2, 4)))]
    body = _encoded(body, headers, draw)
    lines = "".join(f"{line}\r\n" for line in headers)
    data = f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode("latin-1", "replace") + body
    return mutate_bytes(data, draw) if draw.random() < 0.08 else data


def _body(path: str, draw: Random) -> bytes:
    if path not in BODIES:
        return draw.choice((b"", b"", b"{}", b"x" * 1000))
    body = dict(BODIES[path])
    if draw.random() < 0.3:
        body["stream"] = True
    for _ in range(draw.choice((0, 1, 1, 2, 3))):
        body[draw.choice(FIELDS[path])] = hostile(draw)
    changed = mutate(body, draw) if draw.random() < 0.5 else body
    data = to_json(changed)
    return mutate_bytes(data, draw) if draw.random() < 0.1 else data


def _encoded(body: bytes, headers: list[str], draw: Random) -> bytes:
    if "Content-Encoding: gzip" in headers and draw.random() < 0.7:
        body = gzip.compress(body)
    if "Content-Encoding: deflate" in headers and draw.random() < 0.7:
        body = zlib.compress(body)
    if "Transfer-Encoding: chunked" in headers:
        size = (
            f"{len(body):x}" if draw.random() < 0.8 else draw.choice(("zz", "-1", "ffffffffffffffffff", "0x5", "5;a=b"))
        )
        return f"{size}\r\n".encode() + body + b"\r\n0\r\n\r\n"
    if not any(line.startswith("Content-Length") for line in headers) and draw.random() < 0.97:
        headers.append(f"Content-Length: {len(body) + draw.choice((0,) * 20 + (-1, 3))}")
    return body


# Responses


def exchange(address: tuple[str, int], data: bytes) -> bytes:
    """Send bytes; return everything that comes back. A server that waits for more is told that there is no more."""
    received = []
    with socket.create_connection(address, timeout=QUIET_S) as connection:
        try:
            connection.sendall(data)
            try:
                while part := connection.recv(1 << 16):
                    received.append(part)
            except TimeoutError:
                connection.settimeout(LIMIT_S)
                connection.shutdown(socket.SHUT_WR)
                while part := connection.recv(1 << 16):
                    received.append(part)
        except (BrokenPipeError, ConnectionResetError):
            # Refused and closed before all of it was sent; what was received may be the reason.
            pass
    return b"".join(received)


def wrong_with(response: bytes) -> str:
    """Return what is wrong with a response; no response is what a cut request gets."""
    if not response:
        return ""
    head, _, body = response.partition(b"\r\n\r\n")
    try:
        status = int(head.split(b" ", 2)[1])
    except (IndexError, ValueError):
        return f"no HTTP: {response[:60]!r}"
    if status >= 500 and status != 503:
        return f"status {status}: {body[:120]!r}"
    if b"internal_error" in body or b"api_error" in body or b"server_error" in body:
        return f"internal_error: {body[:120]!r}"
    if status >= 400 and b"application/json" in head and body.startswith(b"{"):
        found = json.JSONDecoder().raw_decode(body.decode("utf-8", "replace"))[0]
        error = found.get("error")
        if not isinstance(error, dict) or not error["message"] or "Traceback" in error["message"]:
            return f"error without a message: {body[:120]!r}"
    return ""


def run_case(address: tuple[str, int], case: int, seed: int) -> str:
    """Send the requests of one case; returns what is wrong."""
    draw = Random(f"{seed}:{case}")
    data = b"".join(request_bytes(draw) for _ in range(1 if draw.random() < 0.9 else 3))
    try:
        return wrong_with(exchange(address, data))
    except TimeoutError:
        return "no end of the response"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def fuzz(server: Server, cases: Iterator[int], seed: int = 0) -> tuple[int, list[Finding]]:
    """Run cases against a server with several clients at once; returns how many and what was found."""
    target = urlsplit(server.url)
    address = (str(target.hostname), int(target.port or 0))
    lock, findings, count = threading.Lock(), list[Finding](), itertools.count()
    last = 0

    def client() -> None:
        nonlocal last
        while True:
            with lock:
                case = next(cases, None)
                last = next(count)
            if case is None:
                return
            what = run_case(address, case, seed)
            if what:
                findings.append(Finding(case, what))

    threads = [threading.Thread(target=client) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return last + 1 - CLIENTS, [*findings, *_of_server(server)]


def _of_server(server: Server) -> list[Finding]:
    restarted = [name for name, row in server.topology().items() if row["restarts"]]
    found = [Finding(-1, f"{name} has restarted") for name in restarted]
    return found + [Finding(-1, line) for line in server.output if "Traceback" in line or " E " in line]


def answer(server: Server) -> Any:
    """Return what the server answers to a plain request."""
    body = {"model": "smollm2", "prompt": "Once upon a time", "max_tokens": 40, "temperature": 0}
    status, found = server.post(TEXT, body)
    return status, found["choices"], found["usage"]["completion_tokens"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with Server(*FLAGS) as server:
        before = answer(server)
        count, findings = fuzz(server, until(arguments.seconds), arguments.seed)
        if answer(server) != before:
            findings.append(Finding(-1, "the answer to a plain request has changed"))
    kinds = collections.Counter(finding.what for finding in findings)
    for what, times in kinds.most_common(40):
        example = next(finding.case for finding in findings if finding.what == what)
        print(f"{times:5} {what} (case {example})")
    print(f"{count} cases with seed {arguments.seed}: {len(findings)} findings of {len(kinds)} kinds")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
