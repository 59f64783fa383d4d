"""One chat request through the real parts of the engine, in one process, with the calls that it makes.

    python -m tests.architecture.token_trace torch|triton FILE:NAME ...

HTTP comes in by a socket; the cores of all processes run on a pump. `torch` is the path of a machine without a GPU.
`triton` is that of a GPU with its kernels interpreted: there a CUDA graph is recorded by the calls that are seen here.
The request has two output tokens, the first from the prompt, the second from a decode step. Prints, as JSON, the last
call of each named function: for what serves every token, that is the second token's.
"""

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from aiohttp.test_utils import TestClient, TestServer

from api_proc.app import build_app
from api_proc.server.service import Service
from detok_proc.core import DetokCore
from detok_proc.incremental import DecoderFactory
from quartet.client.async_engine import AsyncEngine
from quartet.client.core import ClientCore
from quartet.runtime.clock import ManualClock
from quartet.runtime.core import Core, Metrics, Sent
from quartet.runtime.pump import Pump
from quartet.wire.codec import Source
from quartet.wire.config import Config
from quartet.wire.frames import ProcessStatus, ProcessTable
from quartet.wire.ids import Epoch, Role, process_name
from scheduler_proc.scheduler_core import SchedulerCore
from tests.golden.oracles import FOLDER
from tests.support.interpreted import interpret_kernels
from tests.support.local_engine import make_config
from tokenizer_proc.process import load_core
from worker_proc.core import WorkerCore

ROOT = Path(__file__).resolve().parents[2]
MODEL = FOLDER / "models" / "qwen3"
PARTS = tuple(f"{ROOT}/{name}/" for name in ("api_proc", "scheduler_proc", "worker_proc", "detok_proc", "kernels"))
EPOCH = Epoch(1)
LOOP_TURNS = 30
"""Turns of the event loop between two frames, so that handlers are through with one before the next comes."""


@dataclass
class Call:
    """The last call of a function: its place in the order of last calls, whether a core was handling a frame (its role
    and the sender's), and the numbers of the engine's own calls around it."""

    order: int
    role: str = ""
    sender: str = ""
    around: tuple[int, ...] = ()


class Tracer:
    """Notes calls of functions given as `FILE:NAME`; installed by sys.setprofile."""

    def __init__(self, named: Iterable[str]) -> None:
        self._wanted = {(str(ROOT / file), name): f"{file}:{name}" for file, name in (one.split(":") for one in named)}
        self._numbers: dict[FrameType, int] = {}
        self._count = 0
        self.handling = ("", "")
        self.calls: dict[str, Call] = {}

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        key = self._wanted.get((frame.f_code.co_filename, frame.f_code.co_name)) if event == "call" else None
        if key is not None:
            self._count += 1
            self.calls[key] = Call(self._count, *self.handling, tuple(self._around(frame)))

    def _around(self, frame: FrameType | None) -> Iterable[int]:
        while frame is not None:
            if frame.f_code.co_filename.startswith(PARTS):
                yield self._numbers.setdefault(frame, len(self._numbers))
            frame = frame.f_back


class TracedCore:
    """A core that shows the tracer whose frame it handles."""

    def __init__(self, role: Role, core: Core, tracer: Tracer) -> None:
        self._role, self._core, self._tracer = role, core, tracer
        self.inbound: Any = core.inbound

    def handle(self, source: Source, frame: Any, now: float) -> list[Sent]:
        self._tracer.handling = (self._role.name.lower(), source.role.name.lower())
        try:
            return self._core.handle(source, frame, now)
        finally:
            self._tracer.handling = ("", "")

    def tick(self, now: float) -> list[Sent]:
        return self._core.tick(now)

    def next_deadline(self) -> float | None:
        return self._core.next_deadline()

    def is_idle(self) -> bool:
        return self._core.is_idle()

    def metrics(self) -> Metrics:
        return self._core.metrics()


class Engine:
    """Every core of the engine, the worker's with a real model, on one pump. Sends for the client."""

    def __init__(self, config: Config, tracer: Tracer) -> None:
        from worker_proc.loading import load_runner

        clock = ManualClock()
        self.pump = Pump(clock)
        client = ClientCore(process_name(Role.API, 0))
        cores: dict[Role, Core] = {
            Role.API: client,
            Role.TOKENIZER: load_core(config),
            Role.SCHEDULER: SchedulerCore(config, EPOCH),
            Role.WORKER: WorkerCore(EPOCH, load_runner(config, lambda: None), clock),
            Role.DETOK: DetokCore(DecoderFactory(MODEL)),
        }
        for role, core in cores.items():
            self.pump.add(process_name(role, 0), Source(role, 0, EPOCH), TracedCore(role, core, tracer))
        self.pump.announce(ProcessTable([ProcessStatus(role, 0, 1, EPOCH, "ready", "", 0) for role in cores], False))
        self.pump.run()
        engine = AsyncEngine(client, self, clock)
        self.service = Service(
            name="api-0", engine=engine, config=config, clock=clock, draw_seed=lambda: 1, wall_time=time.time
        )

    def send(self, sent: Iterable[Sent]) -> None:
        self.pump.send(Source(Role.API, 0, EPOCH), sent)

    async def run(self) -> None:
        while True:
            for _ in range(LOOP_TURNS):
                await asyncio.sleep(0)
            if not self.pump.deliver():
                self.pump.tick()


async def stream_two_tokens(engine: Engine) -> str:
    """Send one chat request over HTTP; return the events of the answer."""
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2, "ignore_eos": True, "stream": True}
    pumping = asyncio.create_task(engine.run())
    try:
        async with TestClient(TestServer(build_app(engine.service))) as http:
            response = await http.post("/v1/chat/completions", json={**body, "temperature": 0})
            return await response.text()
    finally:
        pumping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await pumping


def main(backend: str, named: list[str]) -> None:
    """Trace one request; the start of the engine, where the worker warms up, is not traced."""
    if backend == "triton":
        interpret_kernels()
    tracer = Tracer(named)
    engine = Engine(make_config(MODEL, tokenizer=MODEL, attention_backend=backend, max_total_tokens=512), tracer)
    sys.setprofile(tracer)
    try:
        events = asyncio.run(stream_two_tokens(engine))
    finally:
        sys.setprofile(None)
    assert '"finish_reason":"length"' in events, events
    print(json.dumps({name: asdict(call) for name, call in tracer.calls.items()}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
