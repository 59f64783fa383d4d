"""Golden traces of the scheduler core: recorded events, and byte for byte the frames that they must give.

A trace is independent of Python names: a frame is its msgpack body (tag and columns), an internal event a word and its
fields. So a rename leaves every trace as it is, and a change of behaviour does not. A frame that has got another field
since it was recorded is read with that field's default; what an answer to a query, or the snapshot, tells beside what
was recorded is not compared: another setting, another metric.
"""

import dataclasses
import lzma
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from quartet.wire.config import SchedulerConfig
from quartet.wire.frames import (
    Abort,
    Accepted,
    Close,
    Failed,
    HeldRequests,
    LiveRequests,
    Open,
    Query,
    QueryReply,
    Rejected,
    Step,
    StepFailed,
    StepResult,
    Stopped,
    Submit,
    Tokens,
)
from scheduler_proc.core.events import BeginDrain, Event, Tick, WorkerLost, WorkerUp
from scheduler_proc.core.scheduler import Scheduler

FOLDER = Path(__file__).parent / "scheduler_traces"
INTERNAL: dict[str, type[Any]] = {
    "tick": Tick,
    "worker_up": WorkerUp,
    "worker_lost": WorkerLost,
    "begin_drain": BeginDrain,
}

_encode = msgspec.msgpack.Encoder().encode
_decode_frame = msgspec.msgpack.Decoder(
    Submit | Abort | LiveRequests | Query | Stopped | StepResult | StepFailed
).decode
_decode_sent = msgspec.msgpack.Decoder(
    Accepted | Close | Failed | HeldRequests | Open | QueryReply | Rejected | Step | Tokens
).decode


class Setup(msgspec.Struct, frozen=True):
    """The constructor arguments of a scheduler; `config` holds every field of SchedulerConfig."""

    config: dict[str, Any]
    page_size: int
    context_length: int
    eos_token_ids: list[int]
    worker_name: str

    def scheduler(self) -> Scheduler:
        """Return a scheduler in its first state."""
        return Scheduler(
            SchedulerConfig(**self.config),
            self.page_size,
            self.context_length,
            tuple(self.eos_token_ids),
            self.worker_name,
        )


class Reaction(msgspec.Struct, frozen=True, array_like=True):
    """One event at a time `now`, what is sent because of it, and the deadline afterwards."""

    now: float
    event: bytes
    sent: list[tuple[str, bytes]]
    deadline_s: float | None


class Trace(msgspec.Struct, frozen=True):
    """A run of one scheduler. `counters` are those of its last snapshot."""

    name: str
    setup: Setup
    reactions: list[Reaction]
    gauges: dict[str, float]
    counters: dict[str, float]


def encode_event(event: Event) -> bytes:
    """Return an event in its canonical form."""
    for name, kind in INTERNAL.items():
        if isinstance(event, kind):
            return _encode([name, *dataclasses.astuple(event)])
    return _encode(event)


def decode_event(data: bytes) -> Event:
    """Return the event of a canonical form."""
    head, *fields = msgspec.msgpack.decode(data)
    return INTERNAL[head](*fields) if isinstance(head, str) else _decode_frame(data)


def encode_sent(sent: Iterable[tuple[str, msgspec.Struct]]) -> list[tuple[str, bytes]]:
    """Return what a call of `handle` has sent in its canonical form."""
    return [(destination, _encode(frame)) for destination, frame in sent]


def react(scheduler: Scheduler, now: float, event: bytes) -> Reaction:
    """Hand an event to a scheduler and return all that can be seen of what it does."""
    sent = encode_sent(scheduler.handle(decode_event(event), now))
    return Reaction(now, event, sent, scheduler.next_deadline())


def replay(trace: Trace) -> Trace:
    """Return the trace that a fresh scheduler gives for the same events."""
    scheduler = trace.setup.scheduler()
    reactions = [react(scheduler, reaction.now, reaction.event) for reaction in trace.reactions]
    return Trace(trace.name, trace.setup, reactions, *scheduler.snapshot())


def write(name: str, traces: list[Trace]) -> int:
    """Write a file of traces; returns its size in bytes."""
    FOLDER.mkdir(exist_ok=True)
    return (FOLDER / f"{name}.xz").write_bytes(lzma.compress(_encode(traces)))


def files() -> list[Path]:
    """Return the recorded files."""
    return sorted(FOLDER.glob("*.xz"))


def read(path: Path) -> list[Trace]:
    """Return the traces of a file."""
    traces = msgspec.msgpack.decode(lzma.decompress(path.read_bytes()), type=list[Trace])
    for reaction in (reaction for trace in traces for reaction in trace.reactions):
        reaction.sent[:] = [(to, _encode(_decode_sent(body))) for to, body in reaction.sent]
    return traces


def _without_additions(old: Reaction, new: Reaction) -> Reaction:
    """Return a reaction without what its answers to queries tell beside those of another."""
    if len(old.sent) != len(new.sent):
        return new
    sent = []
    for (_, before), (to, body) in zip(old.sent, new.sent, strict=True):
        known, frame = _decode_sent(before), _decode_sent(body)
        if isinstance(known, QueryReply) and isinstance(frame, QueryReply):
            told = _known(msgspec.json.decode(known.body), msgspec.json.decode(frame.body))
            body = _encode(QueryReply(frame.number, msgspec.json.encode(told)))
        sent.append((to, body))
    return Reaction(new.now, new.event, sent, new.deadline_s)


def _known(before: Any, now: Any) -> Any:
    if isinstance(before, dict) and isinstance(now, dict):
        return {name: _known(value, now[name]) for name, value in before.items() if name in now}
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        return [_known(one, other) for one, other in zip(before, now, strict=True)]
    return now


def differences(recorded: Trace, replayed: Trace) -> Iterator[str]:
    """Yield what differs, in words, the first event first."""
    for at, (old, new) in enumerate(zip(recorded.reactions, replayed.reactions, strict=True)):
        if old != new and old != _without_additions(old, new):
            event = msgspec.msgpack.decode(old.event)
            sent = [[(to, msgspec.msgpack.decode(body)) for to, body in one.sent] for one in (old, new)]
            yield (
                f"{recorded.name}, event {at} at {old.now} s: {event}\nsent before: {sent[0]}\nsent now:    {sent[1]}\n"
                f"deadlines: {old.deadline_s}, {new.deadline_s}"
            )
    kept = [{name: one.get(name) for name in old} for old, one in
            ((recorded.gauges, replayed.gauges), (recorded.counters, replayed.counters))]  # fmt: skip
    if [recorded.gauges, recorded.counters] != kept:
        old, new = [(one.gauges, one.counters) for one in (recorded, replayed)]
        yield f"{recorded.name}: the last snapshot was {old}\nand is {new}"
