"""The HTTP application alone, with a fake engine that pushes tokens at full speed: the server of the SSE benchmark.

    python tests/unit/api_proc/serve_fake_engine.py --port 30001 --step-ms 0
    python benchmarks/sse_client.py --port 30001 --streams 256 --max-tokens 400 --pid PID

Every step gives each open request one token, as a Delta does.
"""

import argparse
import asyncio
import itertools
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import uvloop
from aiohttp import web

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from api_proc.app import build_app
from api_proc.server.service import Service
from quartet.client.request import GenerateRequest, Output
from quartet.runtime.clock import MonotonicClock
from quartet.wire.config import Config, ResolvedModel
from quartet.wire.errors import RequestError
from quartet.wire.frames import Finish, ProcessTable, Timings
from quartet.wire.ids import Rid


class SteppedOutputStream:
    """One request that gets a token a step until its limit."""

    def __init__(self, engine: "SteppedEngine", request: GenerateRequest, rid: Rid) -> None:
        self.rid, self.prompt_ids, self.prompt_text = rid, [1, 2, 3], ""
        self._engine = engine
        self._left = request.params.max_new_tokens or 256
        self._total = self._left
        self._on_output: Callable[[list[Output]], None] | None = None

    def subscribe(self, on_output: Callable[[list[Output]], None], on_error: Callable[[RequestError], None]) -> None:
        self._on_output = on_output

    def step(self) -> None:
        if self._on_output is None:
            return
        self._left -= 1
        finish = None
        if not self._left:
            finish = Finish("length", None, self._total, Timings())
            self._engine.live.discard(self)
        self._on_output([Output(0, [self._left], " token", None, finish)])

    def abort(self) -> None:
        self._engine.live.discard(self)


class SteppedEngine:
    """Implements api_proc.server.service.EngineClient."""

    is_accepting = True
    is_alive = True
    process_table = ProcessTable([], False)

    def __init__(self) -> None:
        self.snapshots: dict[str, object] = {}
        self.live: set[SteppedOutputStream] = set()
        self._ids = itertools.count()
        self.engine_s = 0.0

    def note_written(self, rid: Rid, seconds: float) -> None:
        pass

    def journal_metrics(self) -> object:
        raise NotImplementedError

    async def generate(self, request: GenerateRequest) -> SteppedOutputStream:
        output = SteppedOutputStream(self, request, Rid(next(self._ids).to_bytes(16, "big")))
        self.live.add(output)
        return output

    async def run(self, step_s: float, burst: int) -> None:
        """Step until cancelled. The event loop runs between steps, as it does between two Delta frames."""
        while True:
            if len(self.live) >= burst:
                burst = 1
                for output in list(self.live):
                    output.step()
            await asyncio.sleep(step_s)


async def serve(args: argparse.Namespace) -> None:
    model = ResolvedModel(
        folder="", name="toy", architecture="", vocab_size=1000, context_length=1 << 20, eos_token_ids=()
    )
    engine = SteppedEngine()
    service = Service(
        name="api-0",
        engine=engine,  # type: ignore[arg-type]
        config=Config(resolved=model),
        clock=MonotonicClock(),
        draw_seed=lambda: 1,
        wall_time=time.time,
    )
    runner = web.AppRunner(build_app(service), handler_cancellation=True, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", args.port, backlog=1024).start()
    print(f"pid {os.getpid()}", flush=True)
    await engine.run(args.step_ms / 1000, args.wait_for)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=30001)
    parser.add_argument("--step-ms", type=float, default=0.0)
    parser.add_argument("--wait-for", type=int, default=1, help="open requests before the first step")
    uvloop.run(serve(parser.parse_args()))
