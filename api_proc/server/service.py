"""What all handlers share: the engine client, the configuration, the open requests and the timeouts.

The Protocols are exactly what handlers use of `quartet.client.async_engine`; the tests implement them by a fake.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from aiohttp import web

from api_proc.server.admission import Admission
from api_proc.server.connection import ConnectionLimits
from api_proc.server.stats import ApiStats
from quartet.client.request import GenerateRequest, Output
from quartet.runtime.clock import Clock
from quartet.runtime.core import Metrics
from quartet.wire.config import Config
from quartet.wire.errors import RequestError
from quartet.wire.frames import ProcessTable, Snapshot
from quartet.wire.ids import Rid

BODY_BYTES = 1 << 20
BODY_BYTES_PER_TOKEN = 512
"""A token's text has a few bytes, in JSON up to six times as many; the longest tokens of vocabularies have 128."""


class OutputStream(Protocol):
    """One accepted request. Output that came before `subscribe` is delivered by it."""

    @property
    def rid(self) -> Rid:
        """The request's id."""
        ...

    @property
    def prompt_ids(self) -> list[int]:
        """The prompt as the tokenizer encoded it."""
        ...

    @property
    def prompt_text(self) -> str:
        """The prompt's text; empty for ids that are not echoed."""
        ...

    def subscribe(self, on_output: Callable[[list[Output]], None], on_error: Callable[[RequestError], None]) -> None:
        """Have every increment pushed, on the loop thread."""
        ...

    def abort(self) -> None:
        """Free the request; idempotent."""
        ...


class EngineClient(Protocol):
    """The engine client as handlers use it."""

    @property
    def is_accepting(self) -> bool:
        """All roles are ready and nothing is draining."""
        ...

    @property
    def is_alive(self) -> bool:
        """The engine was ready once; it runs or recovers."""
        ...

    @property
    def process_table(self) -> ProcessTable:
        """The process table."""
        ...

    @property
    def snapshots(self) -> Mapping[str, Snapshot]:
        """The newest snapshot of each process, by process name."""
        ...

    def journal_metrics(self) -> Metrics:
        """The engine client's own numbers."""
        ...

    def generate(self, request: GenerateRequest) -> Awaitable[OutputStream]:
        """Return once every choice is accepted; raise RequestError if one is refused."""
        ...

    def query(self, what: str, argument: str = "") -> Awaitable[bytes]:
        """Return the scheduler's reply as JSON; raise RequestError 503 if none comes."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """How long the server waits, in seconds: for output, for a client that does not read, for a request's body and
    head, for a request on an idle connection."""

    keep_alive_s: float = 15.0
    recovering_s: float = 5.0
    stall_s: float = 60.0
    body_s: float = 60.0
    head_s: float = 20.0
    idle_s: float = 75.0


class OpenRequests:
    """The requests whose responses are open, counted for the drain."""

    def __init__(self) -> None:
        self._count = 0
        self._is_empty = asyncio.Event()
        self._is_empty.set()

    def __len__(self) -> int:
        return self._count

    @contextmanager
    def one(self) -> Iterator[None]:
        """Count one request for the length of the block."""
        self._count += 1
        self._is_empty.clear()
        try:
            yield
        finally:
            self._count -= 1
            if not self._count:
                self._is_empty.set()

    async def wait_empty(self, limit_s: float) -> bool:
        """Return whether every request ended within `limit_s`."""
        try:
            async with asyncio.timeout(limit_s):
                await self._is_empty.wait()
        except TimeoutError:
            return False
        return True


@dataclass(slots=True, kw_only=True)
class Service:
    """The state of one api process."""

    name: str
    engine: EngineClient
    config: Config
    clock: Clock
    draw_seed: Callable[[], int]
    wall_time: Callable[[], float]
    timeouts: Timeouts = field(default_factory=Timeouts)
    stats: ApiStats = field(default_factory=ApiStats)
    open: OpenRequests = field(default_factory=OpenRequests)
    dropped_frames: Callable[[], Mapping[str, float]] = dict
    is_draining: bool = False
    connections: ConnectionLimits | None = None
    admission: Admission = field(init=False)

    def __post_init__(self) -> None:
        jitter = random.Random(self.name)
        self.admission = Admission(self.config, self.clock, lambda: self.engine.snapshots, jitter.random)

    @property
    def model_name(self) -> str:
        """The name under which the model is served."""
        return self.config.model.served_model_name or self.config.require_model().name

    @property
    def max_body_bytes(self) -> int:
        """The largest body that is read: one that can hold no prompt within the context is not."""
        most = self.config.server.max_body_bytes
        if self.config.scheduler.allow_auto_truncate:
            return most
        return min(most, BODY_BYTES + BODY_BYTES_PER_TOKEN * self.config.require_model().context_length)

    @property
    def is_recovering(self) -> bool:
        """A process is being restarted: streams may pause for longer than usual."""
        return not (self.engine.is_accepting or self.is_draining)


SERVICE = web.AppKey("service", Service)
