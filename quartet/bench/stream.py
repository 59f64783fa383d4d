"""What the bytes of one response say, with the times at which they came. Reads no socket and no clock."""

from collections.abc import Callable

import msgspec

from quartet.bench.plan import Record
from quartet.bench.routes import Event, Usage


class ResponseStream:
    """One response, as server-sent events.

    The times are those of vLLM's client: first output, last output and the gaps between events with output count, not
    the closing events. Of an event with several tokens, where the server says so, each takes its share of the gap.
    """

    def __init__(self, read: Callable[[bytes], Event]) -> None:
        self._read = read
        self._rest = b""
        self._first_s = self._last_s = 0.0
        self._gaps: list[float] = []
        self._events = self._tokens = 0
        self._texts: list[str] = []
        self._usage: Usage | None = None
        self._is_done = False
        self._error = ""

    def feed(self, data: bytes, now_s: float) -> None:
        """Take bytes that came at `now_s`; raises msgspec.MsgspecError for an event that cannot be read."""
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            if line.startswith(b"data:"):
                self._take(line[5:].strip(), now_s)

    def _take(self, payload: bytes, now_s: float) -> None:
        if payload == b"[DONE]":
            self._is_done = True
            return
        event = self._read(payload)
        self._error = self._error or event.error
        self._usage = event.usage or self._usage
        if event.text is None:
            return
        fresh = event.tokens - self._tokens if event.tokens else 1
        if not fresh:
            return
        if self._events:
            self._gaps += [(now_s - self._last_s) / fresh] * fresh
        else:
            self._first_s = now_s
        self._last_s = now_s
        self._events += 1
        self._tokens += fresh
        self._texts.append(event.text)

    def finish(self, record: Record, began_s: float) -> None:
        """Write times and tokens of a response to a request sent at `began_s` into `record`, or why it failed."""
        if self._error:
            record.failure, record.message = "error event", self._error
        elif not self._is_done:
            record.failure, record.message = "cut short", "the response ended without [DONE]"
        elif not self._events:
            record.failure, record.message = "no output", "the response had no event with output"
        if not self._events:
            return
        record.ttft_s = self._first_s - began_s
        record.latency_s = self._last_s - began_s
        record.itl_s = self._gaps
        usage = self._usage or Usage()
        record.input_tokens = usage.prompt_tokens or record.input_tokens
        record.output_tokens = usage.completion_tokens or self._tokens
        details = usage.prompt_tokens_details
        record.cached_tokens = (details.cached_tokens if details else usage.cached_tokens) or 0
        if not usage.completion_tokens:
            record.text = "".join(self._texts)


UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError)
"""What `feed` raises for an event that is none of the route's."""
