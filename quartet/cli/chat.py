"""A chat in the terminal, over HTTP: `quartet chat`.

A client of any OpenAI-compatible server, independent of the engine. In a terminal it is a conversation; from a pipe,
each line is one question of the same conversation, and the answers are written to standard output.

    /reset   forget the conversation        Ctrl-C   stop the answer (the server frees the request)
    /exit    leave (or end of input)
"""

import argparse
import contextlib
import http.client
import json
import os
import re
import sys
import time
import urllib.parse
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import Any, TextIO

from quartet.wire.config import ServerConfig

CONNECT_TIMEOUT_S = 10.0
SILENCE_TIMEOUT_S = 120.0
"""A server that sends nothing for this long counts as dead; quartet's sends a comment every 15 s."""

DEFAULT_URL = "http://{0.host}:{0.port}".format(ServerConfig())

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the engine's address, the model and the length of an answer."""
    parser.add_argument("--url", default=os.environ.get("QUARTET_URL", DEFAULT_URL), help="of the engine")
    parser.add_argument("--api-key", default=os.environ.get("QUARTET_API_KEY", ""), help="key to send")
    parser.add_argument("--model", default="", help="model name; default: the one that is served")
    parser.add_argument("--max-tokens", type=int, default=512, metavar="N", help="longest answer (default: 512)")


def run(arguments: argparse.Namespace) -> int:
    """Hold a conversation on the standard streams; returns the exit code."""
    return run_chat(arguments.url, arguments.model, arguments.api_key, max_tokens=arguments.max_tokens)


class ChatFailed(Exception):
    """The server cannot be reached, refuses the request or closes the connection; the message is for the user."""


@dataclass(slots=True)
class Answer:
    """One answer as received: the text, and the finish reason if the server has sent one."""

    text: str = ""
    finish_reason: str | None = None
    completion_tokens: int = 0
    seconds: float = 0.0


class ChatServer:
    """One server, with a connection for each request: closing it stops the answer."""

    def __init__(self, base_url: str, api_key: str = "") -> None:
        parts = urllib.parse.urlsplit(base_url if "://" in base_url else f"http://{base_url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ChatFailed(f"not a server address: {base_url}")
        self._make = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._host, self._port = parts.hostname, parts.port
        self._root = parts.path.rstrip("/").removesuffix("/v1")
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self.address = f"{parts.scheme}://{parts.netloc}{self._root}"

    def first_model(self) -> str:
        """Return the name of the first served model; raises ChatFailed."""
        with self._ask("GET", "/v1/models") as response:
            try:
                return str(json.load(response)["data"][0]["id"])
            except (ValueError, LookupError, TypeError):
                raise ChatFailed(f"{self.address} serves no model") from None

    def events(self, body: dict[str, Any]) -> Generator[dict[str, Any], None, None]:
        """Yield the decoded events of a streamed chat completion until [DONE].

        Closing the iterator closes the connection. Raises ChatFailed, also when the stream ends before [DONE].
        """
        with self._ask("POST", "/v1/chat/completions", {**body, "stream": True}) as response:
            for line in self._lines(response):
                if not line.startswith(b"data:"):
                    continue
                data = line[5:].strip()
                if data == b"[DONE]":
                    return
                event = json.loads(data)
                if "error" in event:
                    raise ChatFailed(_error_message(event, "the server reported an error"))
                yield event
        raise ChatFailed("the server closed the connection before the answer was complete")

    def _lines(self, response: http.client.HTTPResponse) -> Iterator[bytes]:
        try:
            yield from response
        except (OSError, http.client.HTTPException) as error:
            raise ChatFailed(f"the connection to {self.address} was lost: {error or type(error).__name__}") from None

    @contextlib.contextmanager
    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Iterator[http.client.HTTPResponse]:
        connection = self._make(self._host, self._port, timeout=CONNECT_TIMEOUT_S)
        try:
            try:
                connection.connect()
                connection.sock.settimeout(SILENCE_TIMEOUT_S)
                payload = None if body is None else json.dumps(body).encode()
                connection.request(method, self._root + path, payload, self._headers)
                response = connection.getresponse()
            except (OSError, http.client.HTTPException) as error:
                raise ChatFailed(f"cannot reach {self.address}: {error or type(error).__name__}") from None
            if response.status != 200:
                raise ChatFailed(_refusal(response))
            yield response
        finally:
            connection.close()


@dataclass(slots=True)
class Conversation:
    """The turns so far and the settings of the next request."""

    server: ChatServer
    model: str
    options: dict[str, Any]
    system: str = ""
    _turns: list[dict[str, str]] = field(default_factory=list)

    def reset(self) -> None:
        """Forget all turns."""
        self._turns.clear()

    def ask(self, question: str, out: TextIO) -> Answer:
        """Write the answer to `out` as it arrives. Ctrl-C stops it; the text up to then stays in the conversation.

        Raises ChatFailed; the question is then dropped, so that it can be repeated.
        """
        opening = [{"role": "system", "content": self.system}] if self.system else []
        turns = [*self._turns, {"role": "user", "content": question}]
        body = {"model": self.model, "messages": [*opening, *turns], **self.options}
        answer = Answer()
        start = time.monotonic()
        with contextlib.closing(self.server.events(body)) as events:
            try:
                for event in events:
                    _take(event, answer, out)
            except KeyboardInterrupt:
                answer.finish_reason = "interrupted"
        answer.seconds = time.monotonic() - start
        out.write("\n")
        out.flush()
        self._turns = [*turns, {"role": "assistant", "content": answer.text}]
        return answer


def run_chat(
    base_url: str,
    model: str = "",
    api_key: str = "",
    *,
    system: str = "",
    max_tokens: int | None = None,
    temperature: float | None = None,
    source: TextIO | None = None,
    out: TextIO | None = None,
    notes: TextIO | None = None,
) -> int:
    """Hold a conversation until the input ends; return the exit code.

    `source`, `out` and `notes` (prompts, errors, timings) default to the standard streams. Without a terminal the
    first failure ends the run with 1; in a terminal it is shown and the conversation continues.
    """
    source, out, notes = source or sys.stdin, out or sys.stdout, notes or sys.stderr
    options: dict[str, Any] = {"stream_options": {"include_usage": True}}
    if max_tokens is not None:
        options["max_tokens"] = max_tokens
    if temperature is not None:
        options["temperature"] = temperature
    try:
        server = ChatServer(base_url, api_key)
        conversation = Conversation(server, model or server.first_model(), options, system)
    except ChatFailed as error:
        print(f"quartet chat: {error}", file=notes)
        return 1
    if source.isatty():
        return _talk(conversation, source, out, notes)
    return _answer_lines(conversation, source, out, notes)


def _talk(conversation: Conversation, source: TextIO, out: TextIO, notes: TextIO) -> int:
    print(f"{conversation.model} at {conversation.server.address}  (/reset, /exit, Ctrl-C stops an answer)", file=notes)
    while True:
        try:
            question = _read(source, out).strip()
        except KeyboardInterrupt:
            print("\n(/exit or Ctrl-D to leave)", file=notes)
            continue
        except EOFError:
            print(file=notes)
            return 0
        if question == "/exit":
            return 0
        if question == "/reset":
            conversation.reset()
            print("(the conversation is forgotten)", file=notes)
        elif question:
            try:
                answer = conversation.ask(question, out)
            except ChatFailed as error:
                print(f"\n({error})", file=notes)
                continue
            print(_summary(answer), file=notes)


def _answer_lines(conversation: Conversation, source: TextIO, out: TextIO, notes: TextIO) -> int:
    try:
        for line in source:
            question = line.strip()
            if question == "/exit":
                return 0
            if question == "/reset":
                conversation.reset()
            elif question and conversation.ask(question, out).finish_reason == "interrupted":
                return 130
    except ChatFailed as error:
        print(f"quartet chat: {error}", file=notes)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _read(source: TextIO, out: TextIO) -> str:
    """Return one line; raises EOFError at the end of input."""
    if source is sys.stdin:
        with contextlib.suppress(ImportError):
            # Line editing and history for input(), where the platform has them.
            import readline  # noqa: F401
        return input("> ")
    out.write("> ")
    out.flush()
    line = source.readline()
    if not line:
        raise EOFError
    return line


def _take(event: dict[str, Any], answer: Answer, out: TextIO) -> None:
    usage = event.get("usage")
    if usage:
        answer.completion_tokens = int(usage.get("completion_tokens", 0))
    for choice in event.get("choices") or ():
        text = (choice.get("delta") or {}).get("content")
        if text:
            answer.text += text
            # A model's output must not control the terminal.
            out.write(_CONTROL.sub("", text))
            out.flush()
        answer.finish_reason = choice.get("finish_reason") or answer.finish_reason


def _summary(answer: Answer) -> str:
    if answer.finish_reason == "interrupted":
        return "(stopped)"
    speed = answer.completion_tokens / answer.seconds if answer.seconds > 0 else 0.0
    end = ", cut at the length limit" if answer.finish_reason == "length" else ""
    return f"({answer.completion_tokens} tokens, {answer.seconds:.1f} s, {speed:.0f} tokens/s{end})"


def _refusal(response: http.client.HTTPResponse) -> str:
    fallback = f"HTTP {response.status} {response.reason}"
    try:
        return _error_message(json.loads(response.read(1 << 16)), fallback)
    except (ValueError, OSError, http.client.HTTPException):
        return fallback


def _error_message(body: Any, fallback: str) -> str:
    error = body.get("error") if isinstance(body, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    return str(message) if message else fallback
