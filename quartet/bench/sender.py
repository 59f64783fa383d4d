"""Sends requests at their times and records what comes of each. One per client process; it measures, so it does little.

The client of the commands (quartet.cli.engine_client) turns a failure into one line for a person and ends the command.
Here a failure is a figure, and the time of each chunk of bytes counts.
"""

import asyncio
import contextlib
import time
from collections.abc import Sequence

import aiohttp
import msgspec

from quartet.bench.plan import PlannedRequest, Record, Target
from quartet.bench.routes import ROUTES
from quartet.bench.stream import UNREADABLE, ResponseStream

CONNECT_TIMEOUT_S = 60.0
SILENCE_TIMEOUT_S = 1800.0
"""A request may wait long in the queue of an overloaded server, which is worth measuring."""
MESSAGE_CHARACTERS = 300


class Sender:
    """Sends some requests of a run.

    Args:
        indices: the place of each request in the whole run.
        max_concurrency: requests in flight at once; 0: any number.

    `ended` counts the requests that are over, while `run` goes on. Bodies are encoded here, before the run.
    """

    def __init__(
        self, target: Target, requests: Sequence[PlannedRequest], indices: Sequence[int], max_concurrency: int
    ) -> None:
        self._route = ROUTES[target.backend]
        self._url = target.address + self._route.path
        self._headers = {"Content-Type": "application/json", **target.headers}
        self._requests = requests
        self._indices = indices
        self._bodies = [msgspec.json.encode(self._route.body(target, one)) for one in requests]
        self._places = asyncio.Semaphore(max_concurrency) if max_concurrency else contextlib.nullcontext()
        self.ended = 0

    async def run(self, start_s: float) -> list[Record]:
        """Send every request at `start_s`, a time of time.monotonic(), plus its own; returns all records."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=SILENCE_TIMEOUT_S)
        connector = aiohttp.TCPConnector(limit=0)
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout, headers=self._headers) as session,
            asyncio.TaskGroup() as group,
        ):
            tasks = []
            for number, request in enumerate(self._requests):
                wait_s = start_s + request.due_s - time.monotonic()
                if wait_s > 0:
                    await asyncio.sleep(wait_s)
                tasks.append(group.create_task(self._one(session, number, start_s)))
        return [task.result() for task in tasks]

    async def _one(self, session: aiohttp.ClientSession, number: int, start_s: float) -> Record:
        request = self._requests[number]
        arrived_s = time.monotonic()
        async with self._places:
            began_s = time.monotonic()
            record = Record(
                index=self._indices[number],
                start_s=began_s - start_s,
                late_s=arrived_s - start_s - request.due_s,
                queued_s=began_s - arrived_s,
                input_tokens=request.input_tokens,
            )
            try:
                await self._exchange(session, self._bodies[number], record, began_s)
            except TimeoutError as error:
                record.failure, record.message = "timed out", str(error)
            except aiohttp.ClientConnectorError as error:
                record.failure, record.message = "not connected", str(error)
            except (aiohttp.ClientError, OSError) as error:
                record.failure, record.message = "connection lost", str(error) or type(error).__name__
            except UNREADABLE as error:
                record.failure, record.message = "unreadable event", str(error)
        self.ended += 1
        return record

    async def _exchange(self, session: aiohttp.ClientSession, body: bytes, record: Record, began_s: float) -> None:
        async with session.post(self._url, data=body) as response:
            if response.status != 200:
                record.failure = f"HTTP {response.status}"
                record.message = (await response.text(errors="replace"))[:MESSAGE_CHARACTERS]
                return
            stream = ResponseStream(self._route.read)
            async for data in response.content.iter_any():
                stream.feed(data, time.monotonic())
            stream.finish(record, began_s)
