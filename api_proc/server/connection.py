"""One client connection: aiohttp's, which answers with OpenAI's error object where aiohttp would write plain text.

aiohttp refuses malformed HTTP and unknown expectations itself, before the middleware. What it leaves without a limit
has one here: the time that a request's head may take, the time that a client may go without reading, the number of
connections.
"""

import asyncio
import logging
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from aiohttp.http import RawRequestMessage

from api_proc.server.errors import error_response, from_http_exception, malformed_http
from quartet.wire.errors import RequestError

log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class ConnectionLimits:
    """Limits of all connections of one process, and how many there are.

    Seconds: `idle_s` for a connection without a request, `head_s` from the first byte of a head to its last,
    `stall_s` without reading, after which a connection counts as `stalled`. One beyond `most` is closed at once.
    """

    idle_s: float
    head_s: float
    stall_s: float
    most: int
    count: int = 0
    refused: int = 0
    stalled: int = 0


class Connection(web.RequestHandler):
    """Made by the listening socket for each client that connects."""

    __slots__ = ("_has_head_begun", "_head_timer", "_limits", "_stall_timer")

    def __init__(self, manager: web.Server, limits: ConnectionLimits, **options: Any) -> None:
        super().__init__(manager, keepalive_timeout=limits.idle_s, **options)
        self._limits = limits
        self._has_head_begun = False
        self._head_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Serve a client, unless there are too many."""
        super().connection_made(transport)
        self._limits.count += 1
        if self._limits.count > self._limits.most:
            self._limits.refused += 1
            self._abort()
        else:
            self._time_head(self._limits.idle_s)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Forget the client."""
        self._limits.count -= 1
        for timer in (self._head_timer, self._stall_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client reads less than is written: it is given up unless it reads on."""
        super().pause_writing()
        if self._stall_timer is None:
            self._stall_timer = self._loop.call_later(self._limits.stall_s, self._give_up)

    def resume_writing(self) -> None:
        """The client has read."""
        super().resume_writing()
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def _give_up(self) -> None:
        self._limits.stalled += 1
        self._abort()

    def _abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def _watch_head(self) -> None:
        """Time a head from its first byte until it is parsed; aiohttp times what comes between two requests."""
        if self._messages or self._current_request is not None:
            self._has_head_begun = False
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None
        elif not self._has_head_begun:
            self._has_head_begun = True
            self._time_head(self._limits.head_s)

    def _time_head(self, limit_s: float) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
        self._head_timer = self._loop.call_later(limit_s, self._head_is_late)

    def _head_is_late(self) -> None:
        self._head_timer, self._has_head_begun = None, False
        if self._waiter is not None and not self._waiter.done() and not self._messages:
            self.force_close()

    def data_received(self, data: bytes) -> None:
        """Parse what the client sends; a body that turns out to be malformed ends the wait of its handler.

        aiohttp queues its own refusal behind the request whose body it is, whose handler would wait for the rest.
        """
        super().data_received(data)
        self._watch_head()
        if not self._messages or isinstance(self._messages[-1][0], RawRequestMessage):
            return
        if len(self._messages) > 1:
            payload = self._messages[-2][1]
        elif self._current_request is not None:
            payload = self._current_request.content
        else:
            return
        if not payload.is_eof():
            payload.set_exception(malformed_http(getattr(self._messages[-1][0], "exc", None)))

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Return the response to malformed HTTP, or to a failure outside of the middleware; the connection closes."""
        if request.writer.output_size > 0:
            raise ConnectionError("the response has begun")
        # aiohttp puts an unknown expectation into its refusal, which fails for bytes that are no text.
        if 400 <= status < 500 or isinstance(exc, UnicodeEncodeError):
            error = malformed_http(exc)
        else:
            log.error("a response failed", exc_info=exc)
            error = RequestError(500, "internal_error", "the server failed to handle this request")
        response = error_response(error)
        response.force_close()
        return response

    def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> Coroutine[Any, Any, tuple[web.StreamResponse, bool]]:
        """Write a response; aiohttp's own refusals get their body here."""
        if isinstance(resp, web.HTTPException):
            resp = from_http_exception(resp, request.method)
        return super().finish_response(request, resp, start_time)
