"""What all handlers share: the engine client, the configuration, the open requests and the timeouts."""

import asyncio
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from aiohttp import web

from api_proc.server.admission import Admission
from api_proc.server.connection import ConnectionLimits
from api_proc.server.engine_client import EngineClient
from api_proc.server.resume.files import JournalFiles
from api_proc.server.resume.recordings import Recordings
from api_proc.server.resume.siblings import Siblings
from api_proc.server.stats import ApiStats, RateMeter
from api_proc.server.unknown_names import UnknownNames
from quartet.runtime.clock import Clock
from quartet.runtime.core import Metrics
from quartet.wire.config import Config

if TYPE_CHECKING:
    from api_proc.server.tracing import Tracing

BODY_BYTES = 1 << 20
BODY_BYTES_PER_TOKEN = 512
"""A token's text has a few bytes, in JSON up to six times as many; the longest tokens of vocabularies have 128."""


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
    process_metrics: Callable[[], Metrics] = lambda: Metrics({}, {})
    is_draining: bool = False
    connections: ConnectionLimits | None = None
    tracing: "Tracing | None" = None
    run_dir: str | None = None
    rank: int = 0
    admission: Admission = field(init=False)
    recordings: Recordings = field(init=False)
    siblings: Siblings = field(init=False)
    output_rate: RateMeter = field(init=False)
    unknown_names: UnknownNames = field(default_factory=UnknownNames)

    def __post_init__(self) -> None:
        jitter = random.Random(self.name)
        self.output_rate = RateMeter(self.clock)
        self.admission = Admission(self.config, self.clock, lambda: self.engine.snapshots, jitter.random)
        folder = None if self.run_dir is None else Path(self.run_dir, f"{self.name}.streams")
        self.recordings = Recordings(self.clock, self.stats, JournalFiles(folder))
        self.siblings = Siblings(self.run_dir, self.rank, self.config.server.api_procs)

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
