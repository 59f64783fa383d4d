"""How long streams pause when a process is killed, by phase; run by gpu_client.py inside a launch."""

import asyncio
import os
import signal
import statistics
import subprocess
import time
from typing import Any, NamedTuple

from quartet.client.async_engine import AsyncEngine
from quartet.client.request import GenerateRequest, Output
from quartet.wire.ids import process_name

POLL_S = 0.002
LIMIT_S = 120.0
TOKENS_BEFORE = 16
"""Tokens that each stream has before the kill."""
SETTLE_S = 2.0


class KilledStream:
    """One stream: when its tokens came, and their ids."""

    def __init__(self) -> None:
        self.times_s: list[float] = []
        self.ids: list[int] = []
        self.error: Exception | None = None
        self.done = asyncio.Event()

    def take(self, outputs: list[Output]) -> None:
        """Note the tokens of one increment."""
        self.times_s.append(time.perf_counter())
        for output in outputs:
            self.ids += output.ids
            if output.finish is not None:
                self.done.set()

    def fail(self, error: Exception) -> None:
        """End the stream with an error."""
        self.error = error
        self.done.set()

    def next_token_s(self, killed_s: float) -> float:
        """Return the seconds from the kill to the end of the longest pause after it."""
        times = [at for at in self.times_s if at >= killed_s]
        pauses = zip([killed_s, *times], times, strict=False)
        return max(pauses, key=lambda pause: pause[1] - pause[0])[1] - killed_s


class Phases(NamedTuple):
    """Seconds from the kill until the process table showed a successor, and until it was ready."""

    restarted_s: float
    ready_s: float


async def run_streams(engine: AsyncEngine, requests: list[GenerateRequest], victim: str = "") -> dict[str, Any]:
    """Run the requests at once and kill `victim`, a process's name, when all have some tokens.

    Returns the ids of each stream under `ids`, and with a victim the pause: of the first, median and last stream."""
    streams = [KilledStream() for _ in requests]
    async with asyncio.timeout(LIMIT_S):
        outputs = await asyncio.gather(*map(engine.generate, requests))
        for output, stream in zip(outputs, streams, strict=True):
            output.subscribe(stream.take, stream.fail)
        pauses: dict[str, Any] = {}
        if victim:
            while min(len(stream.times_s) for stream in streams) < TOKENS_BEFORE:
                await asyncio.sleep(POLL_S)
            killed_s, phases = await kill(engine, victim)
            await asyncio.gather(*(stream.done.wait() for stream in streams))
            next_s = sorted(stream.next_token_s(killed_s) for stream in streams)
            pauses = {
                **{name: round(seconds, 3) for name, seconds in phases._asdict().items()},
                "first_token_s": round(next_s[0], 3),
                "median_token_s": round(statistics.median(next_s), 3),
                "last_token_s": round(next_s[-1], 3),
            }
        await asyncio.gather(*(stream.done.wait() for stream in streams))
    for stream in streams:
        if stream.error is not None:
            raise stream.error
    return {"ids": [stream.ids for stream in streams], **pauses}


async def wait_for_standby(engine: AsyncEngine) -> None:
    """Return once every process is ready, and some time has passed."""
    async with asyncio.timeout(LIMIT_S):
        while not all(row.state == "ready" for row in engine.process_table.processes):
            await asyncio.sleep(POLL_S)
    await asyncio.sleep(SETTLE_S)


def device_memory_mib() -> dict[str, int]:
    """Return the device memory in use, in all and by process where the driver tells."""
    found = {"all": _query("--query-gpu=memory.used")}
    for line in _lines("--query-compute-apps=pid,used_memory"):
        pid, _, size = line.partition(",")
        found[f"pid {pid.strip()}"] = int(size) if size.strip().isdigit() else -1
    return found


async def kill(engine: AsyncEngine, victim: str) -> tuple[float, Phases]:
    """Kill a process and wait for a successor that is ready; return when it was killed, and what came after."""
    pid, epoch, _ = _row(engine, victim)
    killed_s = time.perf_counter()
    os.kill(pid, signal.SIGKILL)
    while _row(engine, victim)[1] == epoch:
        await asyncio.sleep(POLL_S)
    restarted_s = time.perf_counter() - killed_s
    while _row(engine, victim)[2] != "ready":
        await asyncio.sleep(POLL_S)
    return killed_s, Phases(restarted_s, time.perf_counter() - killed_s)


def _row(engine: AsyncEngine, name: str) -> tuple[int, int, str]:
    rows = {process_name(row.role, row.rank): row for row in engine.process_table.processes}
    return rows[name].pid, rows[name].epoch, rows[name].state


def _query(what: str) -> int:
    lines = _lines(what)
    return int(lines[0]) if lines and lines[0].strip().isdigit() else -1


def _lines(what: str) -> list[str]:
    command = ["nvidia-smi", what, "--format=csv,noheader,nounits"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.splitlines()
    except OSError:
        return []
