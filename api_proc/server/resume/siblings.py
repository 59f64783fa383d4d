"""Several api processes share one listening socket: a stream is read where it is recorded, whichever one is asked.

The process's number is in the stream's id. Where there are several, each listens on a socket in the private run
directory, too, and the others pass requests for its streams on, with their keys; it checks them like any other.
"""

import asyncio
import os
from pathlib import Path

import aiohttp
from aiohttp import web

from quartet.wire.errors import RequestError
from quartet.wire.ids import Rid, Role, process_name

AWAY_S = 5.0
"""How long a process that is being restarted is waited for."""
POLL_S = 0.1
RANK_BYTE = 1
"""Where the number is; the first byte chooses the detokenizer."""
ASKED = ("Authorization", "X-API-Key", "Last-Event-ID", "X-OpenWebUI-User-Id", "X-Request-Id")
ANSWERED = (
    "Cache-Control",
    "Content-Location",
    "Content-Type",
    "Retry-After",
    "WWW-Authenticate",
    "X-Accel-Buffering",
    "X-Quartet-Resume",
)


class Siblings:
    """The api processes of a launch, as one of them sees them.

    Args:
        run_dir: of the launch; None: there is no other process.
        rank: of this process.
        count: of api processes.
    """

    def __init__(self, run_dir: str | None, rank: int, count: int) -> None:
        self._run_dir = run_dir
        self._rank = rank
        self._count = count

    def new_stream(self) -> Rid:
        """Return the id of a stream that this process records: 120 random bits, and its number."""
        drawn = bytearray(os.urandom(16))
        drawn[RANK_BYTE] = self._rank
        return Rid(bytes(drawn))

    def inbox(self) -> str | None:
        """Return the path of the socket for requests that others pass on, which is free; None without others."""
        path = self._path(self._rank) if self._count > 1 else None
        if path is not None:
            # A predecessor may have left it.
            path.unlink(missing_ok=True)
        return None if path is None else str(path)

    def owner(self, stream: Rid) -> Path | None:
        """Return the socket of another process that records the stream, if another one does."""
        rank = stream[RANK_BYTE] if stream else self._rank
        return self._path(rank) if rank != self._rank and rank < self._count else None

    def _path(self, rank: int) -> Path | None:
        name = f"{process_name(Role.API, rank)}.http"
        return None if self._run_dir is None else Path(self._run_dir, name)


async def pass_on(request: web.Request, owner: Path, away_s: float = AWAY_S) -> web.StreamResponse:
    """Have another process answer; one that is away is waited for, and then 503 is raised."""
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + away_s
    while True:
        try:
            return await _answer_of(request, owner)
        except aiohttp.ClientConnectorError:
            if loop.time() > deadline_s:
                message = "The stream's process is restarting."
                raise RequestError(503, "engine_restarting", message, None, 1.0) from None
        await asyncio.sleep(POLL_S)


async def _answer_of(request: web.Request, owner: Path) -> web.StreamResponse:
    headers = {name: request.headers[name] for name in ASKED if name in request.headers}
    connector = aiohttp.UnixConnector(str(owner))
    try:
        async with (
            aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None)) as session,
            session.get(f"http://api{request.path_qs}", headers=headers) as answer,
        ):
            kept = {name: answer.headers[name] for name in ANSWERED if name in answer.headers}
            response = web.StreamResponse(status=answer.status, headers=kept)
            await response.prepare(request)
            async for chunk in answer.content.iter_any():
                await response.write(chunk)
            await response.write_eof()
            return response
    except aiohttp.ClientConnectorError:
        raise
    except aiohttp.ClientError:
        # The client must not take this for the end of the stream.
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionResetError("the stream's process has gone") from None
