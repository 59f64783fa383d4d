"""A client that takes the place of the api process: runs many streams, counts tokens and the CPU time of each process.

Started by engine_overhead.py. Prints one JSON line, then ends the launch.
"""

import asyncio
import json
import os
import signal
import time
from array import array

from benchmarks.serving.client_process import client_main
from benchmarks.serving.cpu_time import cpu_seconds
from quartet.client.async_engine import AsyncEngine
from quartet.client.core import GenerateRequest, Output
from quartet.runtime.process import run_process
from quartet.wire.frames import IdsPrompt, SamplingParams


class OverheadLoad:
    """The load on one engine."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._streams = int(os.environ.get("BENCH_STREAMS", "256"))
        self._tokens = int(os.environ.get("BENCH_TOKENS", "2000"))
        self._received = 0
        self._left = 0
        self._done = asyncio.Event()

    def _on_output(self, outputs: list[Output]) -> None:
        for output in outputs:
            self._received += len(output.ids)
            if output.finish is not None:
                self._left -= 1
                if not self._left:
                    self._done.set()

    async def run(self) -> None:
        """Run the load and print its result."""
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
        for stream in await asyncio.gather(*(self._engine.generate(request) for request in requests)):
            stream.subscribe(self._on_output, self._on_error)
        await self._done.wait()
        return self._received

    @staticmethod
    def _on_error(error: Exception) -> None:
        print(json.dumps({"error": str(error)}), flush=True)
        os.kill(os.getppid(), signal.SIGTERM)


if __name__ == "__main__":
    run_process(client_main(lambda engine: OverheadLoad(engine).run()))
