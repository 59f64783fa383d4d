"""Clients for overload.py: requests at a fixed rate, clients that drop, that do not read, that never finish a head."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

END = b"data: [DONE]"


@dataclass(slots=True)
class Exchange:
    """One request: monotonic times of sending, of the first byte and event, and of the end; 0.0 if there was none."""

    sent_s: float = 0.0
    head_s: float = 0.0
    first_s: float = 0.0
    end_s: float = 0.0
    status: int = 0
    retry_after_s: int = 0


class StreamProtocol(asyncio.Protocol):
    """Sends one request on a connection of its own, and notes what comes back when."""

    def __init__(self, request: bytes, exchange: Exchange, done: "asyncio.Future[None]") -> None:
        self._request, self._exchange, self._done = request, exchange, done
        self._tail = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send."""
        self._transport = transport  # type: ignore[assignment]
        self._exchange.sent_s = time.monotonic()
        transport.write(self._request)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        """Note the head, the first event and the end."""
        exchange, now = self._exchange, time.monotonic()
        if not exchange.head_s:
            exchange.head_s, exchange.status = now, int(data[9:12])
            _, found, rest = data.lower().partition(b"retry-after: ")
            exchange.retry_after_s = int(rest.split()[0]) if found else 0
        joined = self._tail + data
        if not exchange.first_s and b'"content":"' in joined.replace(b'"content":""', b""):
            exchange.first_s = now
        if END in joined or exchange.status != 200:
            exchange.end_s = now
            if self._transport is not None:
                self._transport.abort()
        self._tail = joined[-32:]

    def connection_lost(self, exc: Exception | None) -> None:
        """The exchange is over."""
        if not self._done.done():
            self._done.set_result(None)


@dataclass(slots=True)
class Target:
    """The server and the request that clients send to it."""

    host: str
    port: int
    request: bytes
    exchanges: list[Exchange] = field(default_factory=list)

    async def exchange(self) -> Exchange:
        """Send the request and wait for the end; a connection that is refused has status 0."""
        one, loop = Exchange(), asyncio.get_running_loop()
        self.exchanges.append(one)
        done: asyncio.Future[None] = loop.create_future()
        try:
            await loop.create_connection(lambda: StreamProtocol(self.request, one, done), self.host, self.port)
        except OSError:
            return one
        await done
        return one

    async def drop(self) -> None:
        """Send the request, or half of it, and leave at once."""
        _, writer = await asyncio.open_connection(self.host, self.port)
        writer.write(self.request if id(writer) & 64 else self.request[: len(self.request) // 2])
        await asyncio.sleep(0)
        writer.transport.abort()


async def at_rate(per_s: float, seconds: float, start: Callable[[], Awaitable[object]]) -> int:
    """Start `per_s` tasks a second, late ones at once, and wait for all; returns how many failed by an exception."""
    begin_s, tasks = time.monotonic(), set[asyncio.Task[object]]()
    failed = 0

    def ended(task: "asyncio.Task[object]") -> None:
        nonlocal failed
        tasks.discard(task)
        failed += not task.cancelled() and task.exception() is not None

    for index in range(int(per_s * seconds)):
        delay_s = begin_s + index / per_s - time.monotonic()
        if delay_s > 0:
            await asyncio.sleep(delay_s)
        task = asyncio.ensure_future(start())
        tasks.add(task)
        task.add_done_callback(ended)
    await asyncio.gather(*list(tasks), return_exceptions=True)
    return failed


def milliseconds(values: list[float]) -> dict[str, float]:
    """Return count, median, p99 and largest of values in seconds, in milliseconds; of none the count alone."""
    ordered = sorted(values)
    shares = (("p50", 0.5), ("p99", 0.99), ("max", 1.0)) if ordered else ()
    most = len(ordered) - 1
    return {"count": len(ordered)} | {
        name: round(1e3 * ordered[min(most, int(x * len(ordered)))], 2) for name, x in shares
    }
