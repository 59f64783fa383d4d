"""The body of one streamed response, written straight to the transport.

aiohttp's own `write` is a coroutine with several layers, which cost more than the event itself at tens of thousands of
events a second. aiohttp writes the head and the end of the response; this module writes every byte between them,
including the chunk framing.
"""

import asyncio

from aiohttp import HttpVersion11, web


class ResponsePipe:
    """The writing side of one connection, while a stream is open. Loop thread only.

    Raises ConnectionResetError from the constructor when the client has already disconnected.
    """

    __slots__ = ("_is_chunked", "_is_open", "_protocol", "_request", "_transport")

    def __init__(self, request: web.Request) -> None:
        transport = request.transport
        if transport is None:
            raise ConnectionResetError("the client has gone")
        self._request = request
        self._transport = transport
        self._protocol = request.protocol
        self._is_chunked = request.version >= HttpVersion11
        self._is_open = False

    def open(self) -> None:
        """Allow writing: the response's head has been sent."""
        self._is_open = True

    @property
    def is_writable(self) -> bool:
        """The head is out and the transport's buffer is below its bound."""
        return self._is_open and not self._protocol.writing_paused

    @property
    def is_closed(self) -> bool:
        """The connection is closing or closed."""
        return self._transport.is_closing()

    def write(self, payload: bytes) -> None:
        """Send `payload` as one chunk; never blocks. It must not be empty: an empty chunk ends the response."""
        if self._is_chunked:
            payload = b"%x\r\n%b\r\n" % (len(payload), payload)
        self._transport.write(payload)

    async def drained(self, limit_s: float) -> bool:
        """Return whether the transport accepts more within `limit_s`.

        Raises ConnectionError when the client has disconnected.
        """
        try:
            async with asyncio.timeout(limit_s):
                await self._request.writer.drain()
        except TimeoutError:
            return False
        return True

    def kill(self) -> None:
        """Close the connection at once, without sending what is buffered."""
        self._transport.abort()
