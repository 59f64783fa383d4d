"""Client processes that send one workload together: one asyncio loop is full at some ten thousand events a second.

Request number n goes to process n modulo the number of processes, so each keeps the shape of the arrivals. All start
at one time of the monotonic clock, which processes of a host share. The process of the command reads no stream.
"""

import asyncio
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from quartet.bench.client_process import Order, Report
from quartet.bench.plan import PlannedRequest, Record, Target
from quartet.wire.errors import EngineError

START_DELAY_S = 0.2
LINE_BYTES = 1 << 31
"""The records of a process are one line."""
DIED = "a client process has ended before its requests; its error stands above"


class Measured(NamedTuple):
    """What all processes found: records in the order of the requests, seconds to the last end, CPU shares."""

    records: list[Record]
    duration_s: float
    cpu_shares: list[float]


_report = msgspec.json.Decoder(Report)


def measure(
    target: Target,
    requests: Sequence[PlannedRequest],
    max_concurrency: int = 0,
    processes: int = 1,
    on_progress: Callable[[int], None] = lambda ended: None,
) -> Measured:
    """Send all requests from `processes` client processes and wait for their ends; raises EngineError if one dies.

    `on_progress` gets the number of requests that have ended.
    """
    return asyncio.run(_measure(divide(target, requests, max_concurrency, processes), on_progress))


async def _measure(orders: Sequence[Order], on_progress: Callable[[int], None]) -> Measured:
    children: list[Process] = []
    try:
        for _ in orders:
            command = [sys.executable, "-m", "quartet.bench.client_process"]
            children.append(await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, limit=LINE_BYTES))
        await asyncio.gather(*map(_prepare, children, orders))
        start_s = time.monotonic() + START_DELAY_S
        reports = [Report(0) for _ in orders]

        async def follow(number: int) -> None:
            await _send(children[number], start_s)
            while not reports[number].end_s:
                reports[number] = await _receive(children[number])
                on_progress(sum(report.ended for report in reports))

        await asyncio.gather(*map(follow, range(len(orders))))
    finally:
        for child in children:
            if child.returncode is None:
                child.kill()
        await asyncio.gather(*(child.wait() for child in children))
    records = sorted((record for report in reports for record in report.records), key=lambda record: record.index)
    duration_s = max(report.end_s for report in reports) - start_s
    return Measured(records, duration_s, [report.cpu_share for report in reports])


async def _prepare(child: Process, order: Order) -> None:
    await _send(child, order)
    await _receive(child)


async def _send(child: Process, message: Order | float) -> None:
    assert child.stdin is not None
    child.stdin.write(msgspec.json.encode(message) + b"\n")
    try:
        await child.stdin.drain()
    except ConnectionError:
        raise EngineError(DIED) from None


async def _receive(child: Process) -> Report:
    assert child.stdout is not None
    line = await child.stdout.readline()
    if not line:
        raise EngineError(DIED)
    return _report.decode(line)


def divide(target: Target, requests: Sequence[PlannedRequest], max_concurrency: int, processes: int) -> list[Order]:
    """Deal requests, and places for requests in flight, to at most `processes` orders."""
    processes = min(processes, len(requests), max_concurrency or len(requests))
    return [
        Order(
            target,
            list(requests[number::processes]),
            list(range(number, len(requests), processes)),
            # The first processes take the remainder.
            (max_concurrency + processes - 1 - number) // processes,
        )
        for number in range(processes)
    ]
