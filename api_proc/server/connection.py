"""One client connection: aiohttp's, which answers with OpenAI's error object where aiohttp would write plain text.

aiohttp refuses malformed HTTP and unknown expectations itself, before the middleware.
"""

import logging
from collections.abc import Coroutine
from typing import Any

from aiohttp import web
from aiohttp.http import RawRequestMessage

from api_proc.server.errors import error_response, from_http_exception, malformed_http
from quartet.wire.errors import RequestError

log = logging.getLogger(__name__)


class Connection(web.RequestHandler):
    """Made by the listening socket for each client that connects."""

    __slots__ = ()

    def data_received(self, data: bytes) -> None:
        """Parse what the client sends; a body that turns out to be malformed ends the wait of its handler.

        aiohttp queues its own refusal behind the request whose body it is, whose handler would wait for the rest.
        """
        super().data_received(data)
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
        if 400 <= status < 500:
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
