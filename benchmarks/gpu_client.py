"""The measuring client of benchmarks/gpu_launch.py: runs workloads through `Engine`, as the api process would.

A workload is an object with `kind` and its own fields:

    nano    passes, temperature          256 sequences, lengths as nano-vllm draws them, all at once
    decode  batch, prompt, output        a batch that decodes together; time between its tokens
    ttft    prompt, repeats              one request alone; time to its first token

Writes one JSON object to the plan's file and ends the launch.
"""

import asyncio
import json
import os
import random
import signal
import statistics
import time
from array import array
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.overhead_client import cpu_seconds
from quartet.actors.actor import Context, Metrics
from quartet.actors.process import run_process
from quartet.codec import Source
from quartet.engine import Engine, GenerateRequest, Output
from quartet.frames import ApiInbound, IdsPrompt, SamplingParams, Snapshot, Who
from quartet.ids import Role

NANO_SEQUENCES, NANO_SHORTEST, NANO_LONGEST = 256, 100, 1024
WORDS = 10000


def nano_lengths() -> tuple[list[int], list[int]]:
    """Return prompt and output lengths of nano-vllm's benchmark: 142,827 tokens in, 133,966 out."""
    draw = random.Random(0)
    prompts = []
    for _ in range(NANO_SEQUENCES):
        prompts.append(draw.randint(NANO_SHORTEST, NANO_LONGEST))
        for _ in range(prompts[-1]):
            draw.randint(0, WORDS)
    return prompts, [draw.randint(NANO_SHORTEST, NANO_LONGEST) for _ in range(NANO_SEQUENCES)]


class Stream:
    """One request and when its tokens came."""

    def __init__(self, on_end: "asyncio.Event") -> None:
        self.times: list[tuple[float, int]] = []
        self.count = 0
        self.done = on_end

    def take(self, outputs: list[Output]) -> None:
        """Note the tokens of one increment."""
        now = time.perf_counter()
        for output in outputs:
            self.count += len(output.ids)
            self.times.append((now, self.count))
            if output.finish is not None:
                self.done.set()


class BenchActor:
    """Runs the plan as soon as the engine takes requests."""

    inbound: Any = ApiInbound
    is_threaded = False

    def __init__(self, context: Context) -> None:
        self._context = context
        self._engine = Engine(context)
        self._plan = json.loads(os.environ["BENCH_PLAN"])
        self._random = random.Random(1)
        self._late_compiles = 0.0

    async def start(self) -> dict[str, str | int | float]:
        """Begin."""
        self._tasks = [asyncio.create_task(self._engine.run()), asyncio.create_task(self._work())]
        return {}

    def on_frame(self, source: Source, frame: Any) -> None:
        """Pass a frame on."""
        if isinstance(frame, Snapshot) and frame.role is Role.WORKER:
            self._late_compiles = frame.counters.get("worker_compiles_after_ready", 0.0)
        self._engine.on_frame(source, frame)

    def on_batch_end(self) -> None:
        """Nothing is batched here."""

    def on_who(self, who: Who) -> None:
        """Pass the process table on."""
        self._engine.on_who(who)

    def metrics(self) -> Metrics:
        """Return the engine's own."""
        return self._engine.edge_metrics()

    async def drain(self, limit_s: float) -> None:
        """Nothing to wait for."""

    async def close(self) -> None:
        """Stop."""
        for task in self._tasks:
            task.cancel()

    async def _work(self) -> None:
        try:
            while not self._engine.is_accepting:
                await asyncio.sleep(0.01)
            results: dict[str, Any] = {"ready_s": round(time.time() - self._plan["started"], 2), "results": []}
            await self._together([(300, 8)] * 4, 0.6)
            for workload in self._plan["workloads"]:
                fields = {name: value for name, value in workload.items() if name != "kind"}
                run = {"nano": self._nano, "decode": self._decode, "ttft": self._ttft}[workload["kind"]]
                results["results"].append({**workload, **await run(**fields)})
                results["compiles_after_ready"] = self._late_compiles
                Path(self._plan["out"]).write_text(json.dumps(results))
        except Exception as error:
            print(json.dumps({"error": repr(error)}), flush=True)
        os.kill(os.getppid(), signal.SIGTERM)

    async def _nano(self, passes: int, temperature: float = 0.6) -> dict[str, Any]:
        lengths = list(zip(*nano_lengths(), strict=True))
        found = []
        for _ in range(passes):
            before = self._cpu()
            started = time.perf_counter()
            streams = await self._together(lengths, temperature)
            seconds = time.perf_counter() - started
            tokens = sum(stream.count for stream in streams)
            first = max(stream.times[0][0] for stream in streams) - started
            found.append(
                {
                    "tokens": tokens,
                    "seconds": round(seconds, 3),
                    "tokens_per_s": round(tokens / seconds),
                    "last_first_token_s": round(first, 3),
                    "cpu_s": {name: round(cpu - before[name], 2) for name, cpu in self._cpu().items()},
                }
            )
        return {"passes_found": found}

    async def _decode(self, batch: int, prompt: int = 960, output: int = 160) -> dict[str, Any]:
        before = self._cpu()
        streams = await self._together([(prompt, output)] * batch, 0.0)
        begin = max(stream.times[0][0] for stream in streams)
        end = min(stream.times[-1][0] for stream in streams)
        times = [at for at, _ in streams[0].times if begin <= at <= end]
        counts = [count for at, count in streams[0].times if begin <= at <= end]
        gaps = [later - earlier for earlier, later in pairwise(times)]
        steps = max(1, counts[-1] - counts[0])
        return {
            "step_ms": round(1e3 * statistics.median(gaps), 3),
            "mean_step_ms": round(1e3 * (times[-1] - times[0]) / steps, 3),
            "cpu_ms_a_step": {name: round(1e3 * (cpu - before[name]) / output, 3) for name, cpu in self._cpu().items()},
        }

    async def _ttft(self, prompt: int, repeats: int = 6) -> dict[str, Any]:
        found = []
        for _ in range(repeats + 1):
            started = time.perf_counter()
            (stream,) = await self._together([(prompt, 4)], 0.0)
            found.append(1e3 * (stream.times[0][0] - started))
            await asyncio.sleep(0.02)
        found = found[1:]
        return {
            "ttft_ms": round(statistics.median(found), 2),
            "least": round(min(found), 2),
            "most": round(max(found), 2),
        }

    async def _together(self, lengths: list[tuple[int, int]], temperature: float) -> list[Stream]:
        streams, waiting = [], []
        for prompt, output in lengths:
            ids = array("i", [self._random.randrange(WORDS) for _ in range(prompt)]).tobytes()
            seed = self._random.randrange(1 << 30)
            params = SamplingParams(max_new_tokens=output, temperature=temperature, ignore_eos=True, seed=seed)
            stream = Stream(asyncio.Event())
            streams.append(stream)
            waiting.append(self._one(GenerateRequest(prompt=IdsPrompt(ids), params=params), stream))
        await asyncio.gather(*waiting)
        return streams

    async def _one(self, request: GenerateRequest, stream: Stream) -> None:
        generation = await self._engine.generate(request)
        generation.subscribe(stream.take, self._on_error)
        await stream.done.wait()

    def _cpu(self) -> dict[str, float]:
        return {f"{row.role.label}-{row.rank}": cpu_seconds(row.pid) for row in self._engine.who.processes}

    @staticmethod
    def _on_error(error: Exception) -> None:
        print(json.dumps({"error": str(error)}), flush=True)
        os.kill(os.getppid(), signal.SIGTERM)


if __name__ == "__main__":
    run_process(BenchActor)
