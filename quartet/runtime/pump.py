"""Carries frames between cores of one process, in the order in which they were sent, and ticks them when it is time.

The offline engine, the simulator and the tests run the engine's cores on it; each brings its own clock. Nothing happens
but in `deliver`, `tick` and `run`, so the caller decides when.
"""

import collections
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import msgspec

from quartet.runtime.clock import Clock
from quartet.runtime.core import SUPERVISOR, Core, Sent
from quartet.wire.codec import Source
from quartet.wire.errors import FrameError
from quartet.wire.frames import ProcessTable


class Wire(Protocol):
    """What frames pass through on their way (runtime.memory.MemoryWire)."""

    def send(self, source: Source, destination: str, frame: msgspec.Struct) -> list[Any]:
        """Return what travels instead of the frame: once, twice, changed, or not at all."""
        ...

    def receive(self, inbound: Any, data: Any) -> tuple[Source, Any]:
        """Return the sender and the frame at an inbox of that union; raises FrameError."""
        ...


class Pump:
    """Named cores and the frames between them.

    Args:
        clock: the time that the cores are given.
        wire: what frames pass through; without one they arrive as the objects that were sent.

    `dropped` counts frames that were not acted upon, by reason, as the links of real processes do.
    """

    def __init__(self, clock: Clock, wire: Wire | None = None) -> None:
        self._clock = clock
        self._wire = wire
        self._cores: dict[str, tuple[Source, Core]] = {}
        self._waiting: collections.deque[tuple[str, Any]] = collections.deque()
        self.dropped: collections.Counter[str] = collections.Counter()

    def add(self, name: str, source: Source, core: Core) -> None:
        """Put a core at an address. A later one replaces it, as a restarted process does.

        Cores with the same deadline are ticked in the order in which they were added.
        """
        self._cores[name] = (source, core)

    def remove(self, name: str) -> None:
        """Take a core away; frames for it wait for its successor."""
        self._cores.pop(name, None)

    def send(self, source: Source, sent: Iterable[Sent]) -> None:
        """Queue the frames that a core has returned."""
        wire, waiting = self._wire, self._waiting
        for destination, frame in sent:
            if wire is None:
                waiting.append((destination, (source, frame)))
            else:
                waiting.extend((destination, data) for data in wire.send(source, destination, frame))

    def announce(self, table: ProcessTable) -> None:
        """Hand the process table to every core, as the supervisor does."""
        for source, core in list(self._cores.values()):
            self.send(source, core.handle(SUPERVISOR, table, self._clock.now()))

    @property
    def is_busy(self) -> bool:
        """Whether a frame waits that could be delivered."""
        return any(name in self._cores for name, _ in self._waiting)

    def deliver(self) -> bool:
        """Deliver the oldest frame whose destination is there; return False if there is none."""
        waiting, cores = self._waiting, self._cores
        if not waiting:
            return False
        if waiting[0][0] in cores:
            name, data = waiting.popleft()
            self._hand_over(*cores[name], data)
            return True
        for position, (name, data) in enumerate(waiting):
            if name in cores:
                del waiting[position]
                self._hand_over(*cores[name], data)
                return True
        return False

    def _hand_over(self, own: Source, core: Core, data: Any) -> None:
        try:
            source, frame = data if self._wire is None else self._wire.receive(core.inbound, data)
            self.send(own, core.handle(source, frame, self._clock.now()))
        except FrameError as error:
            self.dropped[error.reason] += 1

    def next_deadline(self) -> float | None:
        """Return the earliest deadline of all cores."""
        due_s, _ = self._first_due()
        return due_s

    def _first_due(self) -> tuple[float | None, tuple[Source, Core] | None]:
        """Return the earliest deadline and the first core that has it."""
        first_s, first = None, None
        for pair in self._cores.values():
            due_s = pair[1].next_deadline()
            if due_s is not None and (first_s is None or due_s < first_s):
                first_s, first = due_s, pair
        return first_s, first

    def tick(self, advance_to: Callable[[float], None] | None = None) -> bool:
        """Tick the first core whose deadline is the earliest, if that has come; return False if none has.

        Args:
            advance_to: moves the clock to a deadline in the future, which has come then.
        """
        due_s, first = self._first_due()
        if due_s is None or first is None:
            return False
        if due_s > self._clock.now():
            if advance_to is None:
                return False
            advance_to(due_s)
        source, core = first
        self.send(source, core.tick(self._clock.now()))
        return True

    def run(self, advance_to: Callable[[float], None] | None = None, limit: int | None = None) -> int:
        """Deliver frames, and tick cores whenever none is left to deliver, until nothing is due.

        Args:
            advance_to: moves the clock to a deadline in the future; without it the run ends there.
            limit: frames and ticks after which RuntimeError is raised: the cores never rest.

        Returns how many frames were delivered.
        """
        delivered = steps = 0
        while True:
            if self.deliver():
                delivered += 1
            elif not self.tick(advance_to):
                return delivered
            steps += 1
            if limit is not None and steps > limit:
                raise RuntimeError(f"still busy after {limit} frames and ticks")
