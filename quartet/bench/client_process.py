"""One client process: gets an order, prepares, gets the start, sends, reports. Started by quartet.bench.fleet.

Orders and reports are lines of JSON on standard input and output.
"""

import asyncio
import gc
import resource
import signal
import sys
import time

import msgspec
import uvloop

from quartet.bench.plan import PlannedRequest, Record, Target
from quartet.bench.sender import Sender

PROGRESS_S = 0.2


class Order(msgspec.Struct, array_like=True):
    """What one client process is to do."""

    target: Target
    requests: list[PlannedRequest]
    indices: list[int]
    max_concurrency: int


class Report(msgspec.Struct, array_like=True):
    """What a client process says: how many requests have ended, and at the end the records and its share of a core."""

    ended: int
    records: list[Record] = []
    end_s: float = 0.0
    cpu_share: float = 0.0


def _report(report: Report) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(report) + b"\n")
    sys.stdout.buffer.flush()


def main() -> None:
    """Run the process."""
    # An interrupt at the terminal reaches the command, which ends the processes.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))
    order = msgspec.json.decode(sys.stdin.buffer.readline(), type=Order)
    sender = Sender(order.target, order.requests, order.indices, order.max_concurrency)
    # A collection that walks the plan would delay what is being measured.
    gc.collect()
    gc.freeze()
    _report(Report(0))
    start_s = msgspec.json.decode(sys.stdin.buffer.readline(), type=float)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        _report(runner.run(_send(sender, start_s)))


async def _send(sender: Sender, start_s: float) -> Report:
    async def show() -> None:
        while True:
            await asyncio.sleep(PROGRESS_S)
            _report(Report(sender.ended))

    progress = asyncio.create_task(show())
    cpu_s = time.process_time()
    records = await sender.run(start_s)
    progress.cancel()
    end_s = time.monotonic()
    return Report(sender.ended, records, end_s, (time.process_time() - cpu_s) / (end_s - start_s))


if __name__ == "__main__":
    main()
