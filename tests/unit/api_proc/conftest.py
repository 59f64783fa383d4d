"""A real HTTP server on a free port in front of the fake engine, and the openai client that talks to it."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
import uvloop
from fake_engine import MODEL, FakeEngine

from api_proc.process import serve_http
from api_proc.server.resume.recovery import Recovery
from api_proc.server.service import Service, Timeouts
from api_proc.shapes import read_shape
from quartet.runtime.clock import MonotonicClock
from quartet.wire.config import Config, ModelConfig, SchedulerConfig, ServerConfig
from quartet.wire.ids import Epoch
from quartet.wire.monitoring import MonitoringConfig


@dataclass
class Api:
    """The server under test and a client session bound to it."""

    engine: FakeEngine
    service: Service
    url: str
    port: int
    http: aiohttp.ClientSession

    async def post(self, path: str, body: Any = None, **more: Any) -> tuple[int, Any, Any]:
        """Return status, decoded JSON (or text) and headers."""
        options = {"json": body, **more} if "data" not in more else more
        async with self.http.post(self.url + path, **options) as response:
            is_json = response.content_type == "application/json"
            return response.status, await (response.json() if is_json else response.text()), response.headers

    async def get(self, path: str, **more: Any) -> tuple[int, Any, Any]:
        """Return status, decoded JSON (or text) and headers."""
        async with self.http.get(self.url + path, **more) as response:
            is_json = response.content_type == "application/json"
            return response.status, await (response.json() if is_json else response.text()), response.headers


MakeApi = Callable[..., Any]


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run on the loop that the processes run on: its transports differ from the standard ones."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
async def make_api() -> AsyncIterator[MakeApi]:
    """Start servers; everything is closed at the end of the test."""
    closers = contextlib.AsyncExitStack()

    async def make(
        timeouts: Timeouts | None = None,
        scheduler: SchedulerConfig | None = None,
        run_dir: Path | None = None,
        epoch: int = 1,
        rank: int = 0,
        monitoring: MonitoringConfig | None = None,
        **server: Any,
    ) -> Api:
        engine = FakeEngine()
        config = Config(
            model=ModelConfig(),
            server=ServerConfig(**server),
            scheduler=scheduler or SchedulerConfig(),
            monitoring=monitoring or MonitoringConfig(),
            resolved=MODEL,
        )
        seeds = iter(range(1, 10_000))
        service = Service(
            name=f"api-{rank}",
            engine=engine,
            config=config,
            clock=MonotonicClock(),
            draw_seed=lambda: next(seeds),
            wall_time=lambda: 1_700_000_000.0,
            timeouts=timeouts or Timeouts(),
            run_dir=None if run_dir is None else str(run_dir),
            rank=rank,
        )
        Recovery(service, Epoch(epoch), read_shape).run()
        listener = socket.create_server(("127.0.0.1", 0))
        _, port = await closers.enter_async_context(serve_http(service, listener.detach(), cut_off_s=0.1))
        session = await closers.enter_async_context(aiohttp.ClientSession())
        return Api(engine, service, f"http://127.0.0.1:{port}", port, session)

    async with closers:
        yield make


@pytest.fixture
async def api(make_api: MakeApi) -> Api:
    """A server with default settings."""
    return await make_api()


@pytest.fixture
async def client(api: Api) -> AsyncIterator[openai.AsyncOpenAI]:
    """The openai client, without retries."""
    async with openai.AsyncOpenAI(base_url=api.url + "/v1", api_key="none", max_retries=0) as made:
        yield made
