"""The measuring client of gpu_launch.py: runs workloads through AsyncEngine, as the api process does.

A workload is an object with `kind` and its own fields:

    nano           passes, temperature          256 sequences, lengths as nano-vllm draws them, all at once
    decode         batch, prompt, output        a batch that decodes together; time between its tokens
    ttft           prompt, repeats              one request alone; time to its first token
    batch          streams, prompt, output, passes   so many requests at once, all alike
    shared_prefix  groups, passes               100 requests at once, 2,048 of 2,176 prompt tokens shared in a group
    recovery       victim, kills, streams, prompt, output   see gpu_recovery.py
    same_bytes     requests, prompt, output, kills   see deterministic.py

All ids are drawn anew, so that no round finds a prefix of an earlier one in the cache. Requests are made before the
clock starts. The client writes one JSON object to the plan's file after each workload and ends the launch after the
last; `error` in it gives the reason why results are missing.
"""

import asyncio
import json
import os
import random
import signal
import statistics
import time
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.serving.client_process import client_main
from benchmarks.serving.cpu_time import cpu_seconds
from benchmarks.serving.gpu_traffic import NANO_TEMPERATURE, SHARED_OUTPUT, draw_ids, nano_lengths, shared_prompts
from benchmarks.serving.recovery import device_memory_mib, run_streams, wait_for_standby
from benchmarks.serving.same_bytes import same_bytes
from quartet.client.async_engine import AsyncEngine
from quartet.client.request import GenerateRequest, Output
from quartet.runtime.process import run_process
from quartet.wire.frames import IdsPrompt, SamplingParams, pack_ids
from quartet.wire.ids import Role, process_name

ROUND_LIMIT_S = 300.0
SNAPSHOT_LIMIT_S = 3.0


class Stream:
    """One request and the times of its tokens."""

    def __init__(self) -> None:
        self.times: list[tuple[float, int]] = []
        self.count = 0
        self.cached_tokens = 0
        self.error: Exception | None = None
        self.done = asyncio.Event()

    def take(self, outputs: list[Output]) -> None:
        """Count the tokens of one increment."""
        now = time.perf_counter()
        for output in outputs:
            self.count += len(output.ids)
            self.times.append((now, self.count))
            if output.finish is not None:
                self.cached_tokens = output.finish.timings.cached_tokens
                self.done.set()

    def fail(self, error: Exception) -> None:
        """End the stream with an error."""
        self.error = error
        self.done.set()


class Round(NamedTuple):
    """Requests that were sent at once: the time, and the stream of each."""

    started: float
    streams: list[Stream]

    def first_s(self) -> list[float]:
        """Return the seconds to each first token."""
        return [stream.times[0][0] - self.started for stream in self.streams]

    def facts(self) -> dict[str, float]:
        """Return tokens, seconds to the last of them, and tokens per second."""
        tokens = sum(stream.count for stream in self.streams)
        seconds = max(stream.times[-1][0] for stream in self.streams) - self.started
        return {"tokens": tokens, "seconds": round(seconds, 3), "tokens_per_s": round(tokens / seconds)}


START_UP = 'worker_start_up_seconds{phase="'
WORKER = process_name(Role.WORKER, 0)


class Workloads:
    """The workloads of one launch."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._plan = json.loads(os.environ["BENCH_PLAN"])
        self._random = random.Random(1)
        self._results: dict[str, Any] = {"results": []}

    async def run(self) -> None:
        """Run the plan, write the results and end the launch."""
        try:
            self._results["ready_s"] = round(time.time() - self._plan["started"], 2)
            await self._run(self._requests([(300, 8)] * 4, 0.6))
            for workload in self._plan["workloads"]:
                await self._one_workload(workload)
            await self._note_worker()
        except Exception as error:
            self._results["error"] = repr(error)
        self._write()
        os.kill(os.getppid(), signal.SIGTERM)

    def _write(self) -> None:
        Path(self._plan["out"]).write_text(json.dumps(self._results))

    async def _one_workload(self, workload: dict[str, Any]) -> None:
        kinds = {
            "nano": self._nano,
            "batch": self._batch,
            "decode": self._decode,
            "ttft": self._ttft,
            "shared_prefix": self._shared_prefix,
            "recovery": self._recovery,
            "same_bytes": partial(same_bytes, self._engine),
        }
        fields = {name: value for name, value in workload.items() if name != "kind"}
        self._results["results"].append({**workload, **await kinds[workload["kind"]](**fields)})
        self._write()

    async def _note_worker(self) -> None:
        """Wait for a Snapshot of the worker that is later than all work; keep its start-up times and late compiles."""
        before = self._engine.snapshots.get(WORKER)
        async with asyncio.timeout(SNAPSHOT_LIMIT_S):
            while (snapshot := self._engine.snapshots.get(WORKER)) is before or snapshot is None:
                await asyncio.sleep(0.05)
        phases = {name: round(s, 2) for name, s in snapshot.gauges.items() if name.startswith(START_UP)}
        self._results["start_up_s"] = {name.removeprefix(START_UP).removesuffix('"}'): s for name, s in phases.items()}
        self._results["compiles_after_ready"] = snapshot.counters.get("worker_compiles_after_ready", 0.0)

    async def _nano(self, passes: int, temperature: float = NANO_TEMPERATURE) -> dict[str, Any]:
        found = []
        for _ in range(passes):
            requests = self._requests(nano_lengths(), temperature)
            before = self._cpu()
            done = await self._run(requests)
            found.append(
                {**done.facts(), "last_first_token_s": round(max(done.first_s()), 3), "cpu_s": self._cpu_since(before)}
            )
        return {"passes_found": found}

    async def _batch(self, streams: int, prompt: int, output: int, passes: int) -> dict[str, Any]:
        return {
            "passes_found": [
                (await self._run(self._requests([(prompt, output)] * streams, 0.0))).facts() for _ in range(passes)
            ]
        }

    async def _shared_prefix(self, groups: int, passes: int = 3) -> dict[str, Any]:
        found = []
        for _ in range(passes):
            prompts = shared_prompts(self._random, groups)
            requests = [self._request(prompt, SHARED_OUTPUT, 0.0) for prompt in prompts]
            before = self._cpu()
            done = await self._run(requests)
            cached = sum(stream.cached_tokens for stream in done.streams)
            first_s = done.first_s()
            found.append(
                {
                    **done.facts(),
                    "hit_rate": round(cached / sum(map(len, prompts)), 4),
                    "ttft_mean_ms": round(1e3 * statistics.mean(first_s), 1),
                    "ttft_max_ms": round(1e3 * max(first_s), 1),
                    "cpu_s": self._cpu_since(before),
                }
            )
        return {"passes_found": found}

    async def _recovery(self, victim: str, kills: int, streams: int, prompt: int, output: int) -> dict[str, Any]:
        lengths = [(prompt, output)] * streams
        await wait_for_standby(self._engine)
        memory_mib, found = device_memory_mib(), []
        for _ in range(kills):
            requests = self._requests(lengths, 0.0)
            facts = await run_streams(self._engine, requests, victim)
            await wait_for_standby(self._engine)
            ids = facts.pop("ids")
            undisturbed = (await run_streams(self._engine, requests))["ids"]
            same_streams = sum(one == other for one, other in zip(ids, undisturbed, strict=True))
            found.append({**facts, "same_streams": same_streams})
        return {"kills_found": found, "memory_mib": memory_mib}

    async def _decode(self, batch: int, prompt: int = 960, output: int = 160) -> dict[str, Any]:
        requests = self._requests([(prompt, output)] * batch, 0.0)
        before = self._cpu()
        streams = (await self._run(requests)).streams
        begin = max(stream.times[0][0] for stream in streams)
        end = min(stream.times[-1][0] for stream in streams)
        times = [at for at, _ in streams[0].times if begin <= at <= end]
        counts = [count for at, count in streams[0].times if begin <= at <= end]
        gaps = [later - earlier for earlier, later in pairwise(times)]
        steps = max(1, counts[-1] - counts[0])
        return {
            "step_ms": round(1e3 * statistics.median(gaps), 3),
            "mean_step_ms": round(1e3 * (times[-1] - times[0]) / steps, 3),
            "cpu_ms_a_step": {name: round(1e3 * cpu / output, 3) for name, cpu in self._cpu_since(before).items()},
        }

    async def _ttft(self, prompt: int, repeats: int = 6) -> dict[str, Any]:
        found = []
        for _ in range(repeats + 1):
            done = await self._run(self._requests([(prompt, 4)], 0.0))
            found.append(1e3 * done.first_s()[0])
            await asyncio.sleep(0.02)
        found = found[1:]
        return {
            "ttft_ms": round(statistics.median(found), 2),
            "least": round(min(found), 2),
            "most": round(max(found), 2),
        }

    def _requests(self, lengths: list[tuple[int, int]], temperature: float) -> list[GenerateRequest]:
        """Return requests with these numbers of prompt and output tokens."""
        return [self._request(draw_ids(self._random, prompt), output, temperature) for prompt, output in lengths]

    def _request(self, ids: list[int], output: int, temperature: float) -> GenerateRequest:
        seed = self._random.randrange(1 << 30)
        params = SamplingParams(max_new_tokens=output, temperature=temperature, ignore_eos=True, seed=seed)
        return GenerateRequest(prompt=IdsPrompt(pack_ids(ids)), params=params)

    async def _run(self, requests: list[GenerateRequest]) -> Round:
        """Send requests at once and wait until all end; raises the error of the first that fails."""
        streams = [Stream() for _ in requests]
        started = time.perf_counter()
        async with asyncio.timeout(ROUND_LIMIT_S):
            await asyncio.gather(*map(self._one, requests, streams))
        return Round(started, streams)

    async def _one(self, request: GenerateRequest, stream: Stream) -> None:
        output = await self._engine.generate(request)
        output.subscribe(stream.take, stream.fail)
        await stream.done.wait()
        if stream.error is not None:
            raise stream.error

    def _cpu(self) -> dict[str, float]:
        return {f"{row.role.label}-{row.rank}": cpu_seconds(row.pid) for row in self._engine.process_table.processes}

    def _cpu_since(self, before: dict[str, float]) -> dict[str, float]:
        return {name: round(cpu - before[name], 2) for name, cpu in self._cpu().items()}


if __name__ == "__main__":
    run_process(client_main(lambda engine: Workloads(engine).run()))
