"""The api process: serves HTTP on the socket inherited from the supervisor, in front of the engine client's core.

The supervisor keeps the socket listening while this process is away.
"""

import asyncio
import contextlib
import logging
import random
import resource
import socket
import time
from collections.abc import AsyncIterator
from functools import partial

from aiohttp import web

from api_proc.admin.metrics import own_metrics
from api_proc.app import build_app
from api_proc.openai.chat_format import format_names
from api_proc.server.connection import Connection, ConnectionLimits
from api_proc.server.resume.recovery import Recovery
from api_proc.server.service import Service
from api_proc.server.traffic import log_traffic
from api_proc.shapes import read_shape
from quartet.client.async_engine import AsyncEngine
from quartet.client.core import ClientCore
from quartet.runtime.context import Context, Facts
from quartet.runtime.shell import Shell

log = logging.getLogger(__name__)
http_log = logging.getLogger("api_proc.http")

BACKLOG = 1024
MOST_CONNECTIONS = 8192
OTHER_DESCRIPTORS = 256
"""Kept for what is no client: sockets to other processes, files."""
STALL_SPARE = 1.5
"""A stream reports a client that does not read by itself, before its connection is closed."""
CUT_OFF_S = 2.0
"""How long answers that the drain has cut off may take to be written."""


async def main(context: Context) -> None:
    """Serve until a drain is over."""
    server = context.config.server
    core = ClientCore(context.name, server.tokenizer_procs, server.detok_procs, context.epoch)
    shell = Shell(context, core, metrics=lambda: own_metrics(service))
    engine = AsyncEngine(core, shell, context.clock)
    seeds = random.Random(f"{context.config.scheduler.random_seed}:{context.rank}:{context.epoch}")
    service = Service(
        name=context.name,
        engine=engine,
        config=context.config,
        clock=context.clock,
        draw_seed=lambda: seeds.getrandbits(63),
        wall_time=time.time,
        process_metrics=context.process_metrics,
        run_dir=context.run_dir,
        rank=context.rank,
    )
    if endpoint := context.config.monitoring.otlp_traces_endpoint:
        from api_proc.server.tracing import Tracing, otlp_processor

        service.tracing = Tracing(otlp_processor(endpoint), service.model_name, context.name)
    Recovery(service, context.epoch, read_shape).run()
    async with serve_http(service, context.listen_fd) as (host, port):
        facts: Facts = {"host": host, "port": port, "model": service.model_name, **format_names(context.config)}
        # One process tells of all.
        reporter = asyncio.create_task(log_traffic(service)) if context.rank == 0 else None
        try:
            await shell.serve(facts, partial(drain, service, engine))
        finally:
            if reporter is not None:
                reporter.cancel()
            if service.tracing is not None:
                await asyncio.to_thread(service.tracing.close)


@contextlib.asynccontextmanager
async def serve_http(service: Service, listen_fd: int, cut_off_s: float = CUT_OFF_S) -> AsyncIterator[tuple[str, int]]:
    """Serve HTTP inside the block; gives the bound address. Every connection is closed at its end."""
    # Handlers report their own errors. What aiohttp itself would log is a stack for each line of malformed HTTP,
    # which any port scan can send.
    http_log.setLevel(logging.CRITICAL)
    runner = web.AppRunner(build_app(service), handler_cancellation=True, shutdown_timeout=cut_off_s)
    await runner.setup()
    try:
        listener = socket.socket(fileno=listen_fd)
        host, port = listener.getsockname()[:2]
        loop = asyncio.get_running_loop()
        assert runner.server is not None
        service.connections = _connection_limits(service)
        connection = partial(
            Connection,
            runner.server,
            service.connections,
            loop=loop,
            access_log=http_log,
            logger=http_log,
            auto_decompress=False,
        )
        async with contextlib.AsyncExitStack() as servers:
            servers.enter_context(
                contextlib.closing(await loop.create_server(connection, sock=listener, backlog=BACKLOG))
            )
            if (inbox := service.siblings.inbox()) is not None:
                servers.enter_context(contextlib.closing(await loop.create_unix_server(connection, inbox)))
            yield host, port
    finally:
        await runner.cleanup()


def _connection_limits(service: Service) -> ConnectionLimits:
    """Return the limits; clients may have nearly all descriptors that the system allows this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_CONNECTIONS + OTHER_DESCRIPTORS
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    descriptors = wanted if soft == resource.RLIM_INFINITY else soft
    timeouts = service.timeouts
    return ConnectionLimits(
        idle_s=timeouts.idle_s,
        head_s=timeouts.head_s,
        stall_s=STALL_SPARE * timeouts.stall_s,
        most=max(1, min(MOST_CONNECTIONS, descriptors - OTHER_DESCRIPTORS)),
    )


async def drain(service: Service, engine: AsyncEngine, limit_s: float) -> None:
    """Refuse new requests while open ones finish; what is left at the limit ends with an error event."""
    service.is_draining = True
    if await service.open.wait_empty(limit_s):
        return
    log.warning("%d requests were cut off by the shutdown", len(service.open))
    await engine.drain(0.0)
    await service.open.wait_empty(CUT_OFF_S)
