"""MemoryEngine under faults: processes die with their inbox, stay away, freeze, and learn of each other late.

As with real processes, a dead one takes along what waits in its inbox, or leaves it to its successor; what it has sent
still arrives. The table with the successor's epoch comes before the successor does, and each core reads it at a time of
its own. A frame takes a millisecond, so that deadlines pass.
"""

import collections
import math
import random
from collections.abc import Callable, Iterable, Mapping

import msgspec

from quartet.client.core import ClientCore
from quartet.client.request import GenerateRequest
from quartet.runtime.core import SUPERVISOR, Core
from quartet.runtime.pump import Pump
from quartet.wire.codec import Source
from quartet.wire.frames import LastEnd, ProcessStatus, ProcessTable
from quartet.wire.ids import Epoch, Rid, Role, process_name
from tests.support.history import Choice, History
from tests.support.memory_engine import ROLES, MemoryEngine
from worker_proc.contract import DeviceLostError, Runner
from worker_proc.core import WorkerCore
from worker_proc.simulated import SimulatedRunner

INNER = (Role.TOKENIZER, Role.SCHEDULER, Role.WORKER, Role.DETOK)
TYPE_BYTE = 5
"""Where a header has the type of its frame."""
FRAME_S = 0.001
RESTART_S = 0.3
REST_S = 0.25
"""How far the clock is turned when nothing moves."""


class FaultyPump(Pump):
    """A pump that can lose what waits for a core."""

    def core(self, name: str) -> tuple[Source, Core]:
        """Return a core and its source."""
        return self._cores[name]

    def cores(self) -> list[str]:
        """Return the names of the cores that are there."""
        return list(self._cores)

    def lose(self, name: str) -> None:
        """Drop what waits for a core."""
        kept = [one for one in self._waiting if one[0] != name]
        self._waiting.clear()
        self._waiting.extend(kept)

    def waits(self, name: str, kind: type[msgspec.Struct]) -> bool:
        """Say whether a frame of that type waits for a core."""
        return any(to == name and data[TYPE_BYTE] == kind.__struct_config__.tag for to, data in self._waiting)

    def put(self, name: str, data: bytes) -> None:
        """Have bytes arrive at a core."""
        self._waiting.append((name, data))


class FaultyEngine(MemoryEngine):
    """The engine of one seed.

    Args:
        chance: decides when tables are read; everything else is the caller's.
        runner: takes the place of simulated ones; each worker incarnation resets it.
        runner_class: of simulated ones.
        scheduler: settings.
    """

    pump: FaultyPump

    def __init__(
        self,
        chance: random.Random,
        runner: Runner | None = None,
        runner_class: type[SimulatedRunner] = SimulatedRunner,
        **scheduler: object,
    ) -> None:
        self.chance = chance
        self._runner = runner
        self._runner_class = runner_class
        self._away: set[Role] = set()
        self._frozen: dict[Role, tuple[Source, Core]] = {}
        self._tables: list[tuple[str, ProcessTable]] = []
        self._worker_returns_s = math.inf
        self._ends: dict[Role, LastEnd] = {}
        self._last_rid = 0
        self.deaths: collections.Counter[Role] = collections.Counter()
        super().__init__(**scheduler)

    def _make_pump(self) -> Pump:
        return FaultyPump(self.clock, self.wire)

    def _make_worker(self) -> WorkerCore:
        if self._runner is None:
            runner = self._runner_class(self.config, self.clock, lambda seconds: None)
            return WorkerCore(self.epochs[Role.WORKER], runner, self.clock)
        self._runner.reset()
        return WorkerCore(self.epochs[Role.WORKER], self._runner, self.clock)

    def process_table(self) -> ProcessTable:
        return ProcessTable([self._status(role) for role in ROLES], False)

    def _status(self, role: Role) -> ProcessStatus:
        end = self._ends.get(role, self.last_end)
        if role in self._away:
            return ProcessStatus(role, 0, 1, Epoch(self.epochs[role] + 1), "starting", "", 0, end)
        return ProcessStatus(role, 0, 1, self.epochs[role], "ready", "", 0, end)

    @property
    def client(self) -> ClientCore:
        core = self._cores[Role.API]
        assert isinstance(core, ClientCore)
        return core

    def counters(self, role: Role) -> Mapping[str, float]:
        """Return the counters of a role's living incarnation."""
        return self._cores[role].metrics().counters

    # Requests

    def begin(self, request: GenerateRequest, expected: list[Choice] | None = None) -> History:
        """Begin a request; its output is checked against `expected`."""
        self._last_rid += 1
        rid = Rid(self._last_rid.to_bytes(16, "big"))
        params = request.params
        history = History(rid, request.n, expected, params.logprobs >= 0, params.prompt_logprobs >= 0)
        self.send(self.client.generate(request, history, self.clock.now()))
        return history

    # Faults

    def die(self, role: Role, keeps_inbox: bool, how: LastEnd | None = None) -> None:
        """End a process, from outside unless `how` says otherwise. Its successor is announced, and comes with `revive`.

        With `keeps_inbox` the successor gets what waits for it.
        """
        if role in self._away:
            return
        self.deaths[role] += 1
        name = process_name(role, 0)
        self._frozen.pop(role, None)
        self._ends[role] = self.last_end if how is None else how
        self.pump.remove(name)
        self._tables = [pair for pair in self._tables if pair[0] != name]
        if not keeps_inbox:
            self.pump.lose(name)
        self._away.add(role)
        self._announce()

    def revive(self, role: Role) -> None:
        """Start the successor of a dead process."""
        if role not in self._away:
            return
        self._away.remove(role)
        self._start(role)
        self._read_table(process_name(role, 0), self.process_table())
        self._announce()

    def freeze(self, role: Role) -> None:
        """Stop a process as SIGSTOP does: nothing of it is lost."""
        if role not in self._away and role not in self._frozen:
            name = process_name(role, 0)
            self._frozen[role] = self.pump.core(name)
            self.pump.remove(name)

    def is_frozen(self, role: Role) -> bool:
        """Say whether a process is stopped."""
        return role in self._frozen

    def thaw(self, role: Role) -> None:
        """Let a stopped process go on."""
        if role in self._frozen:
            source, core = self._frozen.pop(role)
            self.pump.add(process_name(role, 0), source, core)

    def _announce(self) -> None:
        table = self.process_table()
        self._tables += [(name, table) for name in self.pump.cores()]
        self._tables += [(process_name(role, 0), table) for role in self._frozen]

    def _read_table(self, name: str, table: ProcessTable) -> None:
        source, core = self.pump.core(name)
        self.pump.send(source, core.handle(SUPERVISOR, table, self.clock.now()))

    # Time

    def step(self) -> bool:
        """Let one thing happen: a process reads a table, a frame arrives, a deadline has come. False if nothing can.

        A worker that loses its device ends, and its successor comes after RESTART_S."""
        if self.clock.now() >= self._worker_returns_s:
            self._worker_returns_s = math.inf
            self.revive(Role.WORKER)
        try:
            return self._step()
        except DeviceLostError:
            self.die(Role.WORKER, keeps_inbox=False, how=LastEnd.CRASHED)
            self._worker_returns_s = self.clock.now() + RESTART_S
            return True

    def _step(self) -> bool:
        readable = [pair for pair in self._tables if pair[0] in self.pump.cores()]
        if readable and self.chance.random() < 0.2:
            # Each process reads its tables in order.
            name = self.chance.choice(readable)[0]
            first = next(pair for pair in readable if pair[0] == name)
            self._tables.remove(first)
            self._read_table(*first)
        elif not (self.pump.deliver() or self.pump.tick()):
            return bool(readable)
        self.clock.advance(FRAME_S)
        return True

    def steps(self, count: int) -> None:
        """Let at most that many things happen."""
        for _ in range(count):
            if not self.step():
                self.clock.advance(REST_S)

    def step_until(self, holds: Callable[[], bool], limit: int = 20_000) -> None:
        """Let things happen until `holds()`."""
        for _ in range(limit):
            if holds():
                return
            self.steps(1)
        raise AssertionError("it never comes to that")

    def finish(self, histories: Iterable[History], limit_s: float = 120.0) -> None:
        """Bring every process back and let things happen until all requests are over, for `limit_s` at most."""
        for role in INNER:
            self.thaw(role)
            self.revive(role)
        histories = list(histories)
        deadline_s = self.clock.now() + limit_s
        while not all(history.is_over for history in histories) and self.clock.now() < deadline_s:
            self.steps(1)
        while self.step():
            pass

    def check_nothing_left(self) -> None:
        """The leak oracle: after a few seconds no request, page, slot, stream or job is held."""
        deadline_s = self.clock.now() + 5.0
        while not self.scheduler.is_idle() and self.clock.now() < deadline_s:
            # A Submit that came again after its end is freed when the api process has not named it twice.
            self.steps(1)
        gauges, _ = self.scheduler.snapshot()
        assert self.scheduler.is_idle() and not self.client.live_count and self.client.is_idle()
        assert not gauges.get("kv_used_tokens") and not gauges["num_running_reqs"] and not gauges["num_queue_reqs"]
        assert self._cores[Role.DETOK].metrics().gauges["detok_streams"] == 0
        assert self._cores[Role.WORKER].is_idle()
        assert not self.client.metrics().counters["api_replay_divergences"], "a replay has diverged"
