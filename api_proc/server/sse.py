"""One streamed response: outputs are pushed in, server-sent events come out.

The hot path is `on_outputs` -> render -> transport, synchronous from the engine's Delta to the socket. The request
handler's task only waits: for the end, for a client that does not read, for the next keep-alive comment.

    pushed ──► writable? ── yes ──► event
                   └── no ──► backlog ──► events when the transport is writable again
"""

import asyncio
import logging
from collections.abc import Callable

from api_proc.server.backlog import Backlog, Increment, MergedBacklog, TooFarBehind
from api_proc.server.event_ids import EventIds
from api_proc.server.pipe import ResponsePipe
from api_proc.server.rendering import Renderer, TakesIds
from api_proc.server.service import Service
from api_proc.server.usage import Usage
from quartet.client.request import Output
from quartet.wire.errors import RequestError

log = logging.getLogger(__name__)

FLUSH_EVENTS = 64
"""Increments written in one turn of the loop by a stream that catches up."""


class EventStream:
    """Turns pushed outputs into events on one connection.

    `abort` aborts the engine's requests; it is called as soon as the connection is known to be closed. With `backlog`
    the stream reads what is recorded (resume.log_reader) instead of what is pushed; `ids` numbers its events.
    """

    def __init__(
        self,
        pipe: ResponsePipe,
        renderer: Renderer,
        usage: Usage,
        service: Service,
        *,
        abort: Callable[[], None],
        include_usage: bool,
        continuous_usage: bool,
        backlog: Backlog | None = None,
        ids: EventIds | None = None,
    ) -> None:
        self._pipe = pipe
        self._renderer = renderer
        self._take_ids = renderer.take_ids if isinstance(renderer, TakesIds) else None
        self._usage = usage
        self._timeouts = service.timeouts
        self._service = service
        self._abort = abort
        self._include_usage = include_usage
        self._continuous_usage = continuous_usage
        self._unfinished = len(usage.counts)
        self._held: Backlog = MergedBacklog() if backlog is None else backlog
        self._is_behind = False
        self._ids = ids
        self._error: RequestError | None = None
        self._is_over = False
        self._last_write_s = service.clock.now()
        self._wake = asyncio.Event()

    def on_outputs(self, base: int, outputs: list[Output]) -> None:
        """Take one increment of the prompt whose first choice is `base`; never raises and never blocks."""
        if self._is_over:
            return
        now = self._usage.add(base, outputs)
        if self._is_behind or not self._pipe.is_writable:
            self._hold(base, outputs)
        else:
            for output in outputs:
                self._emit(base + output.choice, output, now)

    def advance(self) -> None:
        """Write what the backlog has got from elsewhere, as far as the client reads."""
        if self._is_over:
            return
        if self._pipe.is_closed:
            self._leave()
        elif self._pipe.is_writable:
            self._flush()
        self._wake.set()

    def on_error(self, error: RequestError) -> None:
        """End the stream with an error event, after what is held."""
        if self._is_over or self._error is not None:
            return
        self._error = error
        self._wake.set()
        if not self._held and self._pipe.is_writable:
            self._write_error(error)

    def raise_early_error(self) -> None:
        """Raise an error that came before anything was sent: the response can still have its status."""
        if self._error is not None:
            raise self._error

    def begin(self) -> None:
        """Send the opening event of each choice and the output that came before the response head was sent."""
        self._pipe.open()
        opening = b"".join(map(self._renderer.first, range(len(self._usage.counts))))
        self._write(opening, self._service.clock.now())
        self._flush()

    async def serve(self) -> None:
        """Return when the transport has the last event, or the connection is closed or stalled."""
        while not self._is_over:
            if self._pipe.is_closed:
                self._leave()
            elif not self._pipe.is_writable:
                if not await self._pipe.drained(self._timeouts.stall_s):
                    self.give_up()
            elif self._held or self._error is not None:
                self._flush()
                await asyncio.sleep(0)
            else:
                await self._idle()

    async def _idle(self) -> None:
        """Wait for an event to write; write a comment if the stream has been silent for too long."""
        self._wake.clear()
        timeouts = self._timeouts
        pause_s = min(timeouts.recovering_s, timeouts.keep_alive_s)
        silent_s = self._service.clock.now() - self._last_write_s
        try:
            async with asyncio.timeout(max(pause_s - silent_s % pause_s, 0.001)):
                await self._wake.wait()
        except TimeoutError:
            now = self._service.clock.now()
            limit_s = timeouts.recovering_s if self._service.is_recovering else timeouts.keep_alive_s
            if now - self._last_write_s >= limit_s and self._pipe.is_writable:
                self._write(self._renderer.keep_alive, now, is_event=False)

    def _emit(self, choice: int, output: Output | Increment, now: float) -> None:
        if self._is_over:
            return
        try:
            payload = self._rendered(choice, output)
        except Exception:
            # The caller is the engine client, which has other requests to serve: only this stream may end.
            log.exception("an answer could not be rendered")
            self._write_error(RequestError(500, "internal_error", "the server failed to write this answer"))
        else:
            self._write(payload, now)

    def _rendered(self, choice: int, output: Output | Increment) -> bytes:
        usage = self._usage.usage() if self._continuous_usage else b""
        text, logprobs, finish = output.text, output.logprobs, output.finish
        if self._take_ids is not None:
            self._take_ids(choice, output.ids)
        payload = self._renderer.delta(choice, text, logprobs, usage) if text or logprobs else b""
        if finish is not None:
            payload += self._renderer.finish(choice, finish, usage)
            self._unfinished -= 1
            if not self._unfinished:
                payload += self._ending()
        return payload

    def _ending(self) -> bytes:
        self._is_over = True
        self._wake.set()
        self._usage.close()
        usage = self._renderer.usage(self._usage.usage(), self._usage.timings()) if self._include_usage else b""
        return usage + self._renderer.end_of_stream

    def _write(self, payload: bytes, now: float, is_event: bool = True) -> None:
        if is_event and self._ids is not None:
            payload = self._ids.number(payload)
        if not payload:
            return
        if self._pipe.is_closed:
            self._leave()
            return
        self._pipe.write(payload)
        self._service.stats.sse_writes += 1
        self._last_write_s = now

    def _write_error(self, error: RequestError) -> None:
        self._is_over = True
        self._service.stats.finished["error"] += 1
        self._write(self._renderer.error(error) + self._renderer.end_of_stream, self._service.clock.now())

    def _hold(self, base: int, outputs: list[Output]) -> None:
        if self._pipe.is_closed:
            self._leave()
            return
        try:
            self._held.add(base, outputs)
        except TooFarBehind:
            self.give_up()
            return
        self._is_behind = True
        self._wake.set()

    def _flush(self) -> None:
        """Send what is held, as far as the client reads, then the error if there is one."""
        now = self._service.clock.now()
        for _ in range(FLUSH_EVENTS):
            if not self._held or not self._pipe.is_writable:
                break
            held = self._held.pop()
            self._emit(held.choice, held, now)
        self._is_behind = bool(self._held)
        if self._error is not None and not self._is_behind and not self._is_over:
            self._write_error(self._error)

    def give_up(self) -> None:
        """Cut off a client that does not read. Idempotent."""
        if self._is_over:
            return
        self._service.stats.clients_stalled += 1
        self._leave()
        self._pipe.kill()

    def _leave(self) -> None:
        """Stop writing and abort the engine's requests: the client has disconnected."""
        self._is_over = True
        self._held.clear()
        self._wake.set()
        self._abort()
