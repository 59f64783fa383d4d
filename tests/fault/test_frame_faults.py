"""Frames doubled, swapped, lost, damaged, stale and foreign, in memory: exact, and what is dropped is counted."""

import random
from collections import defaultdict
from collections.abc import Callable

import pytest

from quartet.runtime.memory import Fault
from quartet.wire.ids import Role
from tests.support.faulty_engine import INNER, FaultyEngine
from tests.support.request_kinds import SIMULATED, make_engine, prepared

PROMPTS = [[10 + i, 20, 30, *range(40, 40 + 31 * i)] for i in range(5)]


class Frames:
    """Does something to each frame whose turn it is; swapped ones wait for the next to the same destination."""

    def __init__(self, every: int, act: Callable[[bytes], list[bytes]]) -> None:
        self.every, self.act, self.seen = every, act, 0
        self.changed = 0

    def __call__(self, destination: str, data: bytes) -> list[bytes]:
        self.seen += 1
        if self.seen % self.every:
            return [data]
        self.changed += 1
        return self.act(data)


class Swapped:
    """Delivers every tenth frame after the next one to its destination."""

    def __init__(self) -> None:
        self.seen, self.changed = 0, 0
        self._held: dict[str, bytes] = {}

    def __call__(self, destination: str, data: bytes) -> list[bytes]:
        held = self._held.pop(destination, None)
        if held is not None:
            self.changed += 1
            return [data, held]
        self.seen += 1
        if self.seen % 10:
            return [data]
        self._held[destination] = data
        return []


def damaged(chance: random.Random) -> Callable[[bytes], list[bytes]]:
    def act(data: bytes) -> list[bytes]:
        at = chance.randrange(len(data))
        return [chance.choice([data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :], data[:at], data + b"\0"])]

    return act


FAULTS: dict[str, Callable[[], Frames | Swapped]] = {
    "every frame doubled": lambda: Frames(1, lambda data: [data, data]),
    "every 10th frame doubled": lambda: Frames(10, lambda data: [data, data]),
    "every 10th frame tripled": lambda: Frames(10, lambda data: [data, data, data]),
    "two frames swapped": lambda: Swapped(),
    "every 50th frame lost": lambda: Frames(50, lambda data: []),
    "every 50th frame damaged": lambda: Frames(50, damaged(random.Random(4))),
    "foreign bytes": lambda: Frames(7, lambda data: [b"GET / HTTP/1.1\r\n\r\n", data, b"", bytes(64), data[:20]]),
    "another launch": lambda: Frames(7, lambda data: [data[:8] + bytes(8) + data[16:], data]),
}


def run(engine: FaultyEngine, kind: str, fault: Fault | None) -> None:
    made, expected = prepared(kind, SIMULATED, PROMPTS)
    engine.wire.fault = fault
    histories = [engine.begin(*pair) for pair in zip(made, expected, strict=True)]
    engine.finish(histories, limit_s=300.0)
    engine.wire.fault = None
    for history in histories:
        history.check()
    # A lost Abort, Close or Stopped is made good by the live requests of the next seconds.
    engine.steps(40)
    engine.check_nothing_left()


@pytest.mark.parametrize("fault", FAULTS)
def test_frames(fault: str) -> None:
    engine = make_engine("logprobs", random.Random(2))
    frames = FAULTS[fault]()
    run(engine, "logprobs", frames)
    assert frames.changed > 3
    if fault in ("every 50th frame damaged", "foreign bytes", "another launch"):
        assert engine.pump.dropped.total() >= frames.changed, "frames were dropped without a count"


@pytest.mark.parametrize("role", INNER, ids=lambda role: role.label)
def test_frames_of_a_dead_incarnation(role: Role) -> None:
    """All that a process has ever sent comes again while its successor serves (case 13)."""
    made, expected = prepared("logprobs", SIMULATED, PROMPTS)
    engine = make_engine("logprobs", random.Random(3))
    sent: dict[int, list[tuple[str, bytes]]] = defaultdict(list)

    def record(destination: str, data: bytes) -> list[bytes]:
        sent[data[6]].append((destination, data))
        return [data]

    engine.wire.fault = record
    histories = [engine.begin(*pair) for pair in zip(made, expected, strict=True)]
    engine.steps(90)
    engine.die(role, keeps_inbox=False)
    old = list(sent[int(role)])
    assert old
    engine.revive(role)
    before = fenced(engine)
    for _ in range(4):
        engine.steps(25)
        for destination, data in old:
            engine.pump.put(destination, data)
    engine.finish(histories)
    for history in histories:
        history.check()
    engine.check_nothing_left()
    if role is not Role.TOKENIZER:
        assert fenced(engine) >= before + 4 * min(len(old), 20), "old frames were acted upon"


def fenced(engine: FaultyEngine) -> float:
    """Return how many frames have been dropped and counted because a dead incarnation sent them."""
    counters = {**engine.counters(Role.API), **engine.counters(Role.WORKER), **engine.counters(Role.DETOK)}
    names = ("api_stale_items", "worker_stale_frames", "detok_stale_frames")
    return engine.pump.dropped["stale"] + sum(counters.get(name, 0.0) for name in names)
