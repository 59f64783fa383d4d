"""A seeded nemesis for FaultyEngine: deaths, freezes and absences of one to four processes at random moments."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from quartet.client.request import GenerateRequest
from quartet.wire.frames import LastEnd, Open
from quartet.wire.ids import Role
from tests.support.faulty_engine import INNER, TYPE_BYTE, FaultyEngine
from tests.support.history import Choice, History

ROLE_BYTE, EPOCH_BYTES = 6, slice(16, 20)
"""Where a header has the role and the epoch of its sender."""
MAX_ABSENCE_S = 1.5
"""A stopped process is found and killed after about two seconds, and a simulated one starts in less than one."""
MAX_WORKER_DEATHS = 2
"""Within one request's life: a third one, or a second one by a hang, may be held against it (scheduler's Suspects)."""
MOST_SUSPICIOUS_DEATHS = 4
"""Three kills of these two roles put requests on trial (client's Trials), and a fourth may meet the one on trial; a
second one would be held against it. Of a tokenizer the first kill does so."""


@dataclass
class Shaking:
    """What happens in one run.

    Attributes:
        faults: how many times processes are killed or stopped.
        gap: things that happen between two faults, at most.
        absence: things that happen before a successor comes, or a stopped process goes on or is killed, at most.
        lost: the share of frames that get lost.
    """

    faults: int = 10
    gap: int = 60
    absence: int = 40
    lost: float = 0.0


@dataclass
class Return:
    """When a process comes back: after that many things, and at that time at the latest."""

    things: int
    latest_s: float


class Ghosts:
    """A fault of the wire: frames come again, long after they were sent and by whom that may be dead, or at once."""

    def __init__(self, engine: FaultyEngine, chance: random.Random, doubled: float = 0.03, lost: float = 0.0) -> None:
        self._engine = engine
        self._chance = chance
        self._doubled, self._lost = doubled, lost
        self._sent: dict[Role, list[tuple[int, str, bytes]]] = {role: [] for role in INNER}
        engine.wire.fault = self

    def __call__(self, destination: str, data: bytes) -> list[bytes]:
        role, epoch = Role(data[ROLE_BYTE]), int.from_bytes(data[EPOCH_BYTES], "little")
        if role in self._sent:
            self._sent[role].append((epoch, destination, data))
        fate = self._chance.random()
        return [] if fate < self._lost else [data, data] if fate < self._lost + self._doubled else [data]

    def appear(self) -> None:
        """Have some old frames of one role in a row arrive again, mostly those of its dead incarnations.

        An Open of the living would begin a stream that no one ends; no link delivers one twice."""
        role = self._chance.choice(INNER)
        living = int(self._engine.epochs[role])
        frames = self._sent[role]
        if self._chance.random() < 0.3:
            frames = [one for one in frames if one[2][TYPE_BYTE] != Open.__struct_config__.tag]
            living += 1
        old = [(to, data) for epoch, to, data in frames if epoch < living]
        start = self._chance.randrange(len(old)) if old else 0
        for destination, data in old[start : start + self._chance.randrange(20)]:
            self._engine.pump.put(destination, data)


def shake(
    engine: FaultyEngine,
    made: list[GenerateRequest],
    expected: Sequence[list[Choice] | None],
    chance: random.Random,
    how: Shaking,
) -> list[History]:
    """Begin the requests at random moments, and inject faults until the last is over; checks every output.

    Returns the histories, all over unless something is lost for good."""
    todo = list(zip(made, expected, strict=True))
    ghosts = Ghosts(engine, chance, lost=how.lost)
    histories: list[History] = []
    back: dict[Role, Return] = {}
    left = how.faults
    while left or todo:
        if todo and (chance.random() < 0.5 or not left):
            histories.append(engine.begin(*todo.pop()))
        if left:
            left -= 1
            _strike(engine, chance, back, how)
            ghosts.appear()
        for _ in range(chance.randrange(1, how.gap)):
            engine.steps(1)
            _bring_back(engine, chance, back)
        if histories and all(history.is_over for history in histories) and not todo:
            break
    engine.finish(histories)
    return histories


def _strike(engine: FaultyEngine, chance: random.Random, back: dict[Role, Return], how: Shaking) -> None:
    count = chance.choices((1, 2, 3, 4), (12, 3, 1, 1))[0]
    for role in chance.sample(INNER, count):
        if role in back or (role is Role.WORKER and engine.deaths[role] >= MAX_WORKER_DEATHS):
            continue
        if chance.random() < 0.25:
            engine.freeze(role)
        else:
            engine.die(role, chance.random() < 0.5, _suspicion(engine, role))
        back[role] = Return(chance.randrange(how.absence), engine.clock.now() + MAX_ABSENCE_S)


def _suspicion(engine: FaultyEngine, role: Role) -> LastEnd:
    """Return how a death counts: as one from outside, until requests may be on trial and so at fault at the next."""
    if role is Role.TOKENIZER:
        may_blame = engine.deaths[role] >= 2
    else:
        may_blame = engine.deaths[Role.SCHEDULER] + engine.deaths[Role.DETOK] >= MOST_SUSPICIOUS_DEATHS
    return LastEnd.NONE if may_blame else LastEnd.KILLED


def _bring_back(engine: FaultyEngine, chance: random.Random, back: dict[Role, Return]) -> None:
    for role in list(back):
        back[role].things -= 1
        if back[role].things > 0 and engine.clock.now() < back[role].latest_s:
            continue
        may_blame = role is Role.WORKER and engine.deaths[role] >= 1
        if engine.is_frozen(role) and chance.random() < 0.5 and not may_blame:
            # A hang: the supervisor kills it, and its successor comes a little later.
            engine.die(role, chance.random() < 0.5, _suspicion(engine, role))
            back[role] = Return(5, engine.clock.now() + MAX_ABSENCE_S)
            continue
        del back[role]
        engine.thaw(role)
        engine.revive(role)
