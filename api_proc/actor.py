"""The actor of the api process: engine client, HTTP application and listening socket."""

import asyncio
import contextlib
import logging
import random
import socket
import time

from aiohttp import web

from api_proc.admin.metrics import own_metrics
from api_proc.app import build_app
from api_proc.server.service import Service
from quartet.client.engine import Engine
from quartet.runtime.actor import Context, Metrics
from quartet.wire.codec import Source
from quartet.wire.frames import ApiInbound, ProcessTable

log = logging.getLogger(__name__)
http_log = logging.getLogger("api_proc.http")

BACKLOG = 1024
IDLE_CONNECTION_S = 75.0
LAST_WORDS_S = 2.0
"""How long responses that the drain has ended may take to be written."""


class ApiActor:
    """Serves HTTP on the socket inherited from the supervisor, which keeps it listening while this process is away."""

    inbound = ApiInbound
    is_threaded = False

    def __init__(self, context: Context) -> None:
        config = context.config
        seeds = random.Random(f"{config.scheduler.random_seed}:{context.rank}:{context.epoch}")
        self._listen_fd: int = getattr(context, "listen_fd", -1)
        self._engine = Engine(context)
        self._service = Service(
            name=context.name,
            engine=self._engine,
            config=config,
            clock=context.clock,
            draw_seed=lambda: seeds.getrandbits(63),
            wall_time=time.time,
        )
        self._lifetime = contextlib.AsyncExitStack()
        self._engine_task: asyncio.Task[None] | None = None
        # Handlers report their own errors. What aiohttp itself would log is a stack for each line of malformed HTTP,
        # which any port scan can send.
        http_log.setLevel(logging.CRITICAL)
        self._runner = web.AppRunner(
            build_app(self._service),
            handler_cancellation=True,
            access_log=None,
            logger=http_log,
            keepalive_timeout=IDLE_CONNECTION_S,
            shutdown_timeout=LAST_WORDS_S,
        )

    async def start(self) -> dict[str, str | int | float]:
        """Begin to serve. Returns the address as it is bound.

        Should the engine client's task fail, the task group takes this process down with it: it would be blind.
        """
        tasks = await self._lifetime.enter_async_context(asyncio.TaskGroup())
        self._engine_task = tasks.create_task(self._engine.run())
        await self._runner.setup()
        listener = socket.socket(fileno=self._listen_fd)
        host, port = listener.getsockname()[:2]
        await web.SockSite(self._runner, listener, backlog=BACKLOG).start()
        return {"host": host, "port": port, "model": self._service.model_name}

    def on_frame(self, source: Source, frame: ApiInbound) -> None:
        """Hand a frame to the engine client."""
        self._engine.on_frame(source, frame)

    def on_batch_end(self) -> None:
        """Nothing is gathered over a burst: events leave as their Delta is taken."""

    def on_process_table(self, process_table: ProcessTable) -> None:
        """Hand the process table to the engine client."""
        self._engine.on_process_table(process_table)

    def metrics(self) -> Metrics:
        """Return what this process and its engine client count."""
        return own_metrics(self._service)

    async def drain(self, limit_s: float) -> None:
        """Refuse new requests while open ones finish; what is left at the limit ends with an error event."""
        service = self._service
        service.is_draining = True
        if await service.open.wait_empty(limit_s):
            return
        log.warning("%d requests were cut off by the shutdown", len(service.open))
        await self._engine.drain(0.0)
        await service.open.wait_empty(LAST_WORDS_S)

    async def close(self) -> None:
        """Close every connection."""
        await self._runner.cleanup()
        if self._engine_task is not None:
            self._engine_task.cancel()
        await self._lifetime.aclose()
