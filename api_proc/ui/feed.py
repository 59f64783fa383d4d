"""What the open pages of one api process share: the history, the processes' reports, the list of live requests."""

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import psutil
from aiohttp import web

from api_proc.admin.status import process_row
from api_proc.server.admission import SCHEDULER
from api_proc.server.service import Service
from api_proc.ui.history import History
from quartet.wire.errors import RequestError
from quartet.wire.frames import Snapshot
from quartet.wire.ids import process_name

INTERVAL_S = 0.5
FRESH_S = 0.4
"""What one page has got less than this ago is shown by the others, too."""
ANSWER_S = 0.25
"""How long an event waits for the scheduler; without an answer it goes without the requests."""


class Feed:
    """Samples the Snapshots that arrive, and queries the scheduler while a page asks.

    Args:
        service: of the api process.
    """

    def __init__(self, service: Service) -> None:
        self.history = History()
        self._service = service
        self._heard: dict[str, tuple[Snapshot, float]] = {}
        self._asked: dict[str | None, tuple[float, asyncio.Task[msgspec.Raw | None]]] = {}
        self._rows: tuple[float, list[dict[str, Any]]] = (-math.inf, [])

    def sample(self) -> None:
        """Note which processes have reported since the last call, and what the scheduler has."""
        now = self._service.clock.now()
        for name, snapshot in self._service.engine.snapshots.items():
            last = self._heard.get(name)
            if last is None or last[0] is not snapshot:
                self._heard[name] = (snapshot, now)
        scheduler = self._heard.get(SCHEDULER)
        if scheduler is not None:
            self.history.take(scheduler[0], now, self._service.wall_time())

    async def run(self, app: web.Application) -> AsyncIterator[None]:
        """Sample while the application runs."""
        sampling = asyncio.create_task(self._keep_sampling())
        yield
        for task in (sampling, *(task for _, task in self._asked.values())):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _keep_sampling(self) -> None:
        while True:
            self.sample()
            await asyncio.sleep(INTERVAL_S)

    def processes(self) -> list[dict[str, Any]]:
        """Return the process table, with resident memory in bytes and seconds since the last report; None: unknown.

        The pages that are open share one look at it."""
        now = self._service.clock.now()
        if now - self._rows[0] >= FRESH_S:
            self._rows = now, self._process_rows(now)
        return self._rows[1]

    def _process_rows(self, now: float) -> list[dict[str, Any]]:
        rows = []
        for one in self._service.engine.process_table.processes:
            name = process_name(one.role, one.rank)
            heard = (None, now) if name == self._service.name else self._heard.get(name)
            reported_s = None if heard is None else round(now - heard[1], 1)
            rows.append({"name": name, **process_row(one), "reported_s": reported_s, "rss_bytes": _rss_bytes(one.pid)})
        return rows

    async def requests(self, tenant: str | None) -> msgspec.Raw | None:
        """Return the live requests of a tenant (None: of all) as JSON, None if the scheduler does not answer now.

        However many pages are open, the scheduler gets one query each half second for each tenant."""
        now = self._service.clock.now()
        asked_s, task = self._asked.get(tenant, (-math.inf, None))
        if task is None or (task.done() and now - asked_s >= FRESH_S):
            task = asyncio.create_task(self._query(tenant))
            self._asked[tenant] = (now, task)
        await asyncio.wait({task}, timeout=ANSWER_S)
        return task.result() if task.done() else None

    async def _query(self, tenant: str | None) -> msgspec.Raw | None:
        try:
            return msgspec.Raw(await self._service.engine.query("requests", "", tenant))
        except RequestError:
            return None


FEED = web.AppKey("feed", Feed)


def _rss_bytes(pid: int) -> int | None:
    try:
        return int(psutil.Process(pid).memory_info().rss) if pid else None
    except psutil.Error:
        return None
