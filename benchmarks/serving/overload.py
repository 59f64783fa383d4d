"""What overload does: refusals, admitted requests, memory and the return to normal; dropped, slow and unread clients.

    python -m benchmarks.serving.overload
    python -m benchmarks.serving.overload --seconds 10 --drop-seconds 5

The worker is simulated: SLOTS requests run at once, TOKENS steps of STEP_MS each, so the capacity is known. Prints one
JSON object. `reference` is a queue that is full and never overrun (closed loop); `overload` has ten times the capacity
offered for a minute. Times are the client's; the client runs beside the server, so on few cores they hold its time.
"""

import argparse
import asyncio
import json
import os
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvloop

from benchmarks.serving.cpu_time import cpu_seconds
from benchmarks.serving.overload_client import Target, at_rate, milliseconds
from benchmarks.serving.served import get, served
from benchmarks.serving.sse_client import request_bytes

SLOTS, QUEUE, TOKENS, STEP_MS = 8, 32, 20, 20.0
CAPACITY_PER_S = SLOTS / (TOKENS * STEP_MS / 1e3)
OVERLOAD = 10
PAGE_KB = os.sysconf("SC_PAGE_SIZE") // 1024
FLAGS = (
    "smollm2",
    "--simulated-worker",
    "--simulated-step-ms",
    str(STEP_MS),
    "--max-running-requests",
    str(SLOTS),
    "--max-queued-requests",
    str(QUEUE),
)


class Launch:
    """The server under test, seen from outside."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.url, self.host, self.port = url, str(parts.hostname), int(parts.port or 0)

    def target(self, tokens: int = TOKENS, top_logprobs: int = 0) -> Target:
        """Return a target whose requests ask for so many tokens, with log-probabilities if there are to be any."""
        body: dict[str, object] = {
            "messages": [{"role": "user", "content": "Count to twenty."}],
            "stream": True,
            "max_tokens": tokens,
            "ignore_eos": True,
        }
        body |= {"logprobs": True, "top_logprobs": top_logprobs} if top_logprobs else {}
        return Target(self.host, self.port, request_bytes(self.host, "/v1/chat/completions", body, ""))

    def rss_mb(self) -> dict[str, float]:
        """Return the resident memory of each process."""
        rows = json.loads(get(f"{self.url}/topology"))["processes"]
        pages = {
            f"{row['role']}-{row['rank']}": int(Path(f"/proc/{row['pid']}/statm").read_text().split()[1])
            for row in rows
        }
        return {name: round(count * PAGE_KB / 1024, 1) for name, count in pages.items()}

    def cpu_s(self) -> float:
        """Return the processor time that the api process has used."""
        rows = json.loads(get(f"{self.url}/topology"))["processes"]
        return cpu_seconds(next(row["pid"] for row in rows if row["role"] == "api"))

    def restarts(self) -> int:
        """Return how many processes have been restarted."""
        return sum(row["restarts"] for row in json.loads(get(f"{self.url}/topology"))["processes"])


def summary(target: Target) -> dict[str, Any]:
    """Return the times of the exchanges of a target."""
    served_ones = [one for one in target.exchanges if one.status == 200 and one.end_s]
    refused = [one for one in target.exchanges if one.status in (429, 503)]
    return {
        "offered": len(target.exchanges),
        "other": len(target.exchanges) - len(served_ones) - len(refused),
        "refusal_ms": milliseconds([one.head_s - one.sent_s for one in refused]),
        "retry_after_s": sorted({one.retry_after_s for one in refused}),
        "total_ms": milliseconds([one.end_s - one.sent_s for one in served_ones]),
        "first_to_end_ms": milliseconds([one.end_s - one.first_s for one in served_ones]),
    }


async def closed_loop(target: Target, clients: int, seconds: float) -> None:
    """Have that many clients send one request after the other."""
    end_s = time.monotonic() + seconds

    async def client() -> None:
        while time.monotonic() < end_s:
            await target.exchange()

    await asyncio.gather(*(client() for _ in range(clients)))


async def recovery_s(launch: Launch, usual_s: float) -> float:
    """Return how long it takes until a request needs no more than 1.5 times the usual time."""
    begin_s = time.monotonic()
    while time.monotonic() - begin_s < 60:
        one = await launch.target().exchange()
        if one.status == 200 and one.end_s - one.sent_s <= 1.5 * usual_s:
            break
        await asyncio.sleep(0.1)
    return round(one.sent_s - begin_s, 2)


async def overload(launch: Launch, seconds: float) -> dict[str, Any]:
    """Compare a full queue with one that is overrun."""
    alone, reference, loaded = launch.target(), launch.target(), launch.target()
    await closed_loop(alone, 1, 5.0)
    await closed_loop(reference, SLOTS + QUEUE, min(20.0, seconds))
    before, cpu_s = launch.rss_mb(), launch.cpu_s()
    work = asyncio.ensure_future(at_rate(OVERLOAD * CAPACITY_PER_S, seconds, loaded.exchange))
    await asyncio.sleep(seconds)
    cpu_s = launch.cpu_s() - cpu_s
    usual_s = sorted(one.end_s - one.sent_s for one in alone.exchanges)[len(alone.exchanges) // 2]
    back_s = await recovery_s(launch, usual_s)
    await work
    after = launch.rss_mb()
    return {
        "capacity_per_s": CAPACITY_PER_S,
        "alone": summary(alone),
        "reference": summary(reference),
        "overload": summary(loaded),
        "api_cpu_ms_per_request": round(1e3 * cpu_s / len(loaded.exchanges), 3),
        "recovery_s": back_s,
        "rss_growth_mb": {name: round(after[name] - size, 1) for name, size in before.items()},
    }


async def beside(launch: Launch, seconds: float) -> dict[str, Any]:
    """Return what requests at a quarter of the capacity see for so long."""
    target = launch.target()
    await at_rate(CAPACITY_PER_S / 4, seconds, target.exchange)
    return summary(target)


async def drops(launch: Launch, per_s: float, seconds: float) -> dict[str, Any]:
    """Have clients connect, send and leave, beside others that stay."""
    before, target = launch.rss_mb(), launch.target()
    # A first round, so that what the server keeps for reuse is there before it is measured.
    await at_rate(per_s, 3.0, target.drop)
    warm, begin_s = launch.rss_mb(), time.monotonic()
    failed, others = await asyncio.gather(at_rate(per_s, seconds, target.drop), beside(launch, seconds))
    took_s = time.monotonic() - begin_s
    await asyncio.sleep(3.0)
    after = launch.rss_mb()
    return {
        "dropped_per_s": round(per_s * seconds / took_s),
        "failed": failed,
        "others": others,
        "rss_growth_mb": {name: round(after[name] - warm[name], 1) for name in before},
        "live_after": live_requests(launch),
    }


def live_requests(launch: Launch) -> float:
    """Return how many choices the api process still has admitted."""
    lines = get(f"{launch.url}/metrics").decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("quartet_api_admitted_choices"))


async def slow(launch: Launch, sent: bytes, count: int, seconds: float) -> dict[str, Any]:
    """Have clients that send `sent` and never read, beside others."""
    before = launch.rss_mb()
    clients = [await asyncio.open_connection(launch.host, launch.port, limit=1 << 12) for _ in range(count)]
    for _, writer in clients:
        writer.write(sent)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
    others = await beside(launch, seconds)
    after = launch.rss_mb()
    for _, writer in clients:
        writer.transport.resume_reading()  # type: ignore[attr-defined]
    await asyncio.sleep(1.0)
    closed = sum(reader.at_eof() or reader.exception() is not None for reader, _ in clients)
    for _, writer in clients:
        writer.transport.abort()
    growth = {name: round(after[name] - size, 1) for name, size in before.items()}
    return {"clients": count, "others": others, "closed": closed, "rss_growth_mb": growth}


async def measure(args: argparse.Namespace, launch: Launch) -> dict[str, Any]:
    """Run every part."""
    unread = launch.target(tokens=4000, top_logprobs=20).request
    half_a_head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
    found = {"cores": os.cpu_count(), "load": os.getloadavg()[0]}
    found["overload"] = await overload(launch, args.seconds)
    found["drops"] = await drops(launch, args.drops, args.drop_seconds)
    found["unread"] = await slow(launch, unread, SLOTS // 2, args.slow_seconds)
    found["slow_heads"] = await slow(launch, half_a_head, 500, args.slow_seconds)
    found["restarts"] = launch.restarts()
    return found


def main() -> None:
    """Print the result."""
    parser = argparse.ArgumentParser(description="measure a server under too much load")
    parser.add_argument("--seconds", type=float, default=60.0, help="of overload")
    parser.add_argument("--drops", type=float, default=1000.0, help="clients a second that leave at once")
    parser.add_argument("--drop-seconds", type=float, default=30.0)
    parser.add_argument("--slow-seconds", type=float, default=30.0)
    args = parser.parse_args()
    with served(*FLAGS) as url:
        print(json.dumps(uvloop.run(measure(args, Launch(url))), indent=1))


if __name__ == "__main__":
    main()
