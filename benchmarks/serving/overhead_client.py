"""A client that takes the place of the api process: runs many streams, counts tokens and the CPU time of each process.

Started by engine_overhead.py. Prints one JSON line, then ends the launch.
"""

import asyncio
import json
import os
import signal
import time
from array import array
from typing import Any

from benchmarks.serving.cpu_time import cpu_seconds
from quartet.client.engine import Engine, GenerateRequest, Output
from quartet.runtime.actor import Context, Metrics
from quartet.runtime.process import run_process
from quartet.wire.codec import Source
from quartet.wire.frames import ApiInbound, IdsPrompt, ProcessTable, SamplingParams


class OverheadActor:
    """Runs the load as soon as the engine accepts requests."""

    inbound: Any = ApiInbound
    is_threaded = False

    def __init__(self, context: Context) -> None:
        self._context = context
        self._engine = Engine(context)
        self._streams = int(os.environ.get("BENCH_STREAMS", "256"))
        self._tokens = int(os.environ.get("BENCH_TOKENS", "2000"))
        self._received = 0
        self._left = 0
        self._done = asyncio.Event()

    async def start(self) -> dict[str, str | int | float]:
        self._tasks = [asyncio.create_task(self._engine.run()), asyncio.create_task(self._load())]
        return {}

    def on_frame(self, source: Source, frame: Any) -> None:
        self._engine.on_frame(source, frame)

    def on_batch_end(self) -> None:
        pass

    def on_process_table(self, process_table: ProcessTable) -> None:
        self._engine.on_process_table(process_table)

    def metrics(self) -> Metrics:
        return self._engine.journal_metrics()

    async def drain(self, limit_s: float) -> None:
        pass

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()

    def _on_output(self, outputs: list[Output]) -> None:
        for output in outputs:
            self._received += len(output.ids)
            if output.finish is not None:
                self._left -= 1
                if not self._left:
                    self._done.set()

    async def _load(self) -> None:
        while not self._engine.is_accepting:
            await asyncio.sleep(0.05)
        await self._round(64)  # warm-up
        pids = {f"{row.role.label}-{row.rank}": row.pid for row in self._engine.process_table.processes}
        before = {name: cpu_seconds(pid) for name, pid in pids.items()}
        started = time.perf_counter()
        received = await self._round(self._tokens)
        seconds = time.perf_counter() - started
        cpu_us = {name: (cpu_seconds(pid) - before[name]) / received * 1e6 for name, pid in pids.items()}
        result = {
            "streams": self._streams,
            "tokens": received,
            "seconds": round(seconds, 3),
            "tokens_per_s": round(received / seconds),
            "cpu_us_per_token": {name: round(us, 2) for name, us in cpu_us.items()},
        }
        print(json.dumps(result), flush=True)
        os.kill(os.getppid(), signal.SIGTERM)

    async def _round(self, tokens: int) -> int:
        self._received, self._left = 0, self._streams
        self._done.clear()
        params = SamplingParams(max_new_tokens=tokens, temperature=0.0, ignore_eos=True)
        requests = [
            GenerateRequest(prompt=IdsPrompt(array("i", [100 + i, 200, 300]).tobytes()), params=params)
            for i in range(self._streams)
        ]
        for generation in await asyncio.gather(*(self._engine.generate(request) for request in requests)):
            generation.subscribe(self._on_output, self._on_error)
        await self._done.wait()
        return self._received

    @staticmethod
    def _on_error(error: Exception) -> None:
        print(json.dumps({"error": str(error)}), flush=True)
        os.kill(os.getppid(), signal.SIGTERM)


if __name__ == "__main__":
    run_process(OverheadActor)
