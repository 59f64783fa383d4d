"""Requests that wait for the worker to compile their grammar: asked for, released, refused, dropped and counted."""

from typing import Any

import msgspec
import pytest

from quartet.wire.config import SchedulerConfig
from quartet.wire.frames import (
    Abort,
    Accepted,
    CompileGrammar,
    Grammar,
    GrammarCompiled,
    HeldRequests,
    LiveRequest,
    LiveRequests,
    Query,
    Rejected,
    SamplingParams,
    Step,
    Submit,
    pack_ids,
)
from quartet.wire.ids import Address, Epoch, Rid
from scheduler_proc.core.events import BeginDrain, Tick, WorkerLost, WorkerUp
from scheduler_proc.core.grammars import ASK_AGAIN_S, MOST_READY
from scheduler_proc.core.scheduler import Scheduler

EPOCH = Epoch(1)


class Rig:
    """A scheduler with a worker that answers when the test says so. `asked` are the keys of the last call."""

    def __init__(self, is_up: bool = True, **config: Any) -> None:
        self.scheduler = Scheduler(SchedulerConfig(chunked_prefill_size=16, **config), 4, 64, (0,))
        self.now = 0.0
        self.sent: list[tuple[str, msgspec.Struct]] = []
        if is_up:
            self.worker_up()

    def handle(self, event: Any) -> None:
        self.sent = self.scheduler.handle(event, self.now)
        self.scheduler.audit()

    def of(self, kind: type[Any]) -> list[Any]:
        """Return the frames of a kind that the last event has sent."""
        return [frame for _, frame in self.sent if isinstance(frame, kind)]

    def worker_up(self, epoch: int = 1) -> None:
        self.handle(WorkerUp(Epoch(epoch), 64, 8, True))

    def submit(self, number: int, source: str | None = "one", attempt: int = 0, **fields: Any) -> Submit:
        grammar = None if source is None else Grammar("llguidance", source)
        params = SamplingParams(max_new_tokens=8, grammar=grammar)
        ids = pack_ids([number, 2, 3])
        frame = Submit(rid(number), 0, attempt, "api-0", "detok-0", ids, b"", params, **fields)
        self.handle(frame)
        return frame

    def compiled(self, key: bytes, error: str = "") -> None:
        self.handle(GrammarCompiled(EPOCH, key, error))

    def keys(self) -> list[bytes]:
        return [frame.key for frame in self.of(CompileGrammar)]

    def enters(self) -> list[bytes]:
        """Return the prompts that the steps just sent enter."""
        return [enter.ids for step in self.of(Step) for enter in step.enter]


def rid(number: int) -> Rid:
    return Rid(number.to_bytes(16, "big"))


def test_a_request_is_queued_once_its_grammar_is_compiled() -> None:
    rig = Rig()
    rig.submit(1)
    (asked,) = rig.of(CompileGrammar)
    assert asked.source == "one" and len(rig.scheduler.grammars) == 1
    assert not rig.of(Accepted) and not rig.of(Step) and not rig.scheduler.is_idle()
    rig.now = 0.5
    rig.compiled(asked.key)
    assert rig.of(Accepted) and rig.enters() == [pack_ids([1, 2, 3])] and not len(rig.scheduler.grammars)


def test_others_do_not_wait_for_it() -> None:
    rig = Rig()
    rig.submit(1)
    rig.submit(2, None)
    assert rig.enters() == [pack_ids([2, 2, 3])]


def test_a_grammar_is_asked_for_once() -> None:
    rig = Rig()
    rig.submit(1)
    (key,) = rig.keys()
    rig.submit(2)
    assert rig.keys() == []
    rig.submit(3, "two")
    assert len(rig.keys()) == 1
    rig.compiled(key)
    assert rig.enters() == [pack_ids([1, 2, 3]), pack_ids([2, 2, 3])]
    rig.submit(4)
    assert rig.keys() == [] and rig.of(Accepted)


def test_a_grammar_that_cannot_be_compiled_refuses_its_requests() -> None:
    rig = Rig()
    rig.submit(1)
    (key,) = rig.keys()
    rig.submit(2)
    rig.compiled(key, "no rule is named start")
    refused = rig.of(Rejected)
    assert [frame.rid for frame in refused] == [rid(1), rid(2)]
    assert {(frame.status, frame.code) for frame in refused} == {(400, "invalid_grammar")}
    assert "no rule is named start" in refused[0].message and rig.scheduler.is_idle()


def test_an_answer_that_is_lost_is_asked_for_again() -> None:
    rig = Rig()
    rig.submit(1)
    (key,) = rig.keys()
    assert rig.scheduler.next_deadline() == ASK_AGAIN_S
    rig.now = ASK_AGAIN_S
    rig.handle(Tick())
    assert rig.keys() == [key] and rig.scheduler.next_deadline() == 2 * ASK_AGAIN_S
    rig.compiled(key)
    rig.compiled(key)
    assert not rig.of(Accepted)


def test_the_next_worker_compiles_what_waits_and_what_lives() -> None:
    rig = Rig()
    rig.submit(1, "one")
    (one,) = rig.keys()
    rig.compiled(one)
    rig.submit(2, "two")
    (two,) = rig.keys()
    rig.submit(3, None)
    rig.handle(WorkerLost())
    assert rig.scheduler.next_deadline() is None
    rig.worker_up(2)
    assert sorted(rig.keys()) == sorted([one, two])
    # What was accepted runs at once: its Enter waits for the worker's compiler.
    assert pack_ids([1, 2, 3]) in rig.enters()
    rig.submit(4, "one")
    assert rig.keys() == [] and not rig.of(Accepted)
    rig.compiled(one)
    assert [frame.rid for frame in rig.of(Accepted)] == [rid(4)]


def test_what_came_before_a_worker_waits_for_its_grammar_then() -> None:
    rig = Rig(is_up=False)
    rig.submit(1)
    assert rig.keys() == []
    rig.worker_up()
    (key,) = rig.keys()
    rig.compiled(key)
    assert rig.of(Accepted)


def test_a_compiler_that_ends_its_workers_is_refused() -> None:
    rig = Rig()
    rig.submit(1)
    for epoch in (2, 3):
        # Kills from outside say nothing about the grammar.
        rig.handle(WorkerLost(was_killed=True))
        rig.worker_up(epoch)
        assert not rig.of(Rejected)
    rig.handle(WorkerLost(was_killed=False))
    assert not rig.of(Rejected)
    rig.worker_up(4)
    rig.handle(WorkerLost(was_killed=False))
    assert [frame.code for frame in rig.of(Rejected)] == ["invalid_grammar"]


@pytest.mark.parametrize("config", [{}, {"req_waiting_timeout": 1.5}])
def test_a_deadline_ends_the_wait(config: dict[str, Any]) -> None:
    rig = Rig(**config)
    rig.submit(1, deadline_s=None if config else 1.5)
    assert rig.scheduler.next_deadline() == 1.5
    rig.now = 1.5
    rig.handle(Tick())
    assert [frame.code for frame in rig.of(Rejected)] == ["deadline_exceeded"]
    assert rig.scheduler.is_idle()


def test_a_deadline_counts_from_the_arrival() -> None:
    rig = Rig()
    rig.submit(1, deadline_s=1.5)
    (key,) = rig.keys()
    rig.now = 1.0
    rig.compiled(key)
    assert rig.scheduler.next_deadline() == 1.5


def test_an_abort_ends_the_wait() -> None:
    rig = Rig()
    rig.submit(1)
    rig.submit(2)
    rig.handle(Abort(rid(1)))
    assert len(rig.scheduler.grammars) == 1
    rig.handle(Query(1, Address("api-0"), "abort", rid(2).hex()))
    assert [frame.code for frame in rig.of(Rejected)] == ["request_aborted"] and rig.scheduler.is_idle()


def test_a_later_attempt_takes_the_place_of_the_one_before() -> None:
    rig = Rig()
    rig.submit(1)
    (key,) = rig.keys()
    rig.submit(1, attempt=1)
    rig.submit(1)
    rig.compiled(key)
    assert [frame.attempt for frame in rig.of(Accepted)] == [1]


def test_a_drain_refuses_what_comes_and_finishes_what_waits() -> None:
    rig = Rig()
    rig.submit(1)
    (key,) = rig.keys()
    rig.handle(BeginDrain())
    rig.submit(2)
    assert [frame.code for frame in rig.of(Rejected)] == ["draining"]
    assert not rig.scheduler.is_idle()
    rig.compiled(key)
    assert [frame.rid for frame in rig.of(Accepted)] == [rid(1)]


def test_the_queue_limit_counts_what_waits() -> None:
    rig = Rig(max_queued_requests=2)
    rig.submit(1)
    rig.submit(2, "two")
    rig.submit(3)
    (refused,) = rig.of(Rejected)
    assert (refused.rid, refused.code) == (rid(3), "queue_full")


def test_an_api_process_is_told_and_what_it_does_not_name_is_dropped() -> None:
    rig = Rig()
    rig.submit(1)
    rig.submit(2)
    named = LiveRequests(Address("api-0"), [LiveRequest(rid(1), 0, 0)])
    other = LiveRequests(Address("api-1"), [])
    rig.handle(named)
    (held,) = rig.of(HeldRequests)
    assert [(one.rid, one.is_running) for one in held.held] == [(rid(1), False), (rid(2), False)]
    rig.handle(other)
    assert not rig.of(HeldRequests)[0].held
    rig.handle(named)
    assert [one.rid for one in rig.of(HeldRequests)[0].held] == [rid(1)]


def test_no_more_grammars_are_remembered_than_the_worker_keeps() -> None:
    rig = Rig()
    keys = []
    for number in range(MOST_READY + 1):
        rig.submit(number, f"grammar {number}")
        keys += rig.keys()
        rig.handle(Abort(rid(number)))
        rig.compiled(keys[-1])
    rig.submit(9000, "grammar 0")
    assert rig.keys() == [keys[0]]
    rig.submit(9001, f"grammar {MOST_READY}")
    assert rig.keys() == []
