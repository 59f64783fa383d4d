"""`python -m tests.fuzz.frames --seconds N [--seed S]`: frames that make no sense, to the codec and to every core.

The codec raises FrameError or returns a frame of its inbox, whatever the bytes. A core raises FrameError or answers:
requests that are running end, exactly as without the storm if none of the frames names them, and one that comes after
the storm is answered as ever.
"""

import argparse
import sys
import traceback
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import msgspec

from quartet.client.request import Output
from quartet.wire.codec import Decoder, Encoder, Source
from quartet.wire.errors import FrameError, RequestError
from quartet.wire.frames import SchedulerHello, Step, StepResult
from quartet.wire.ids import Epoch, Rid, Role, process_name
from tests.fuzz.frame_values import FrameMaker
from tests.fuzz.guarded import Finding, print_kinds, run_guarded, until
from tests.fuzz.mutants import mutate_bytes
from tests.support.faulty_engine import FaultyEngine
from tests.support.history import Choice, History
from tests.support.request_kinds import SIMULATED, make_engine, prepared
from tests.support.wire_samples import BOOT, INBOXES, SAMPLES, sealed, tag

PROMPTS = [[10 + i, 20, 30, *range(40, 40 + 31 * i)] for i in range(4)]
KINDS = ("greedy", "stop strings", "logprobs", "n = 4")
TARGETS = (Role.API, Role.SCHEDULER, Role.WORKER, Role.DETOK)
SENDERS = {
    Role.API: (Role.TOKENIZER, Role.SCHEDULER, Role.DETOK, Role.WORKER),
    Role.SCHEDULER: (Role.API, Role.WORKER, Role.DETOK),
    Role.WORKER: (Role.SCHEDULER,),
    Role.DETOK: (Role.SCHEDULER,),
}
TARGET_NAMES = frozenset(process_name(role, 0) for role in TARGETS)
STORM_FRAMES = 60


class Witness(History):
    """A client that believes everything: what forged output does to it is not the question."""

    def on_error(self, error: RequestError) -> None:
        self.error = error

    def on_outputs(self, outputs: list[Output]) -> None:
        for output in outputs:
            choice = self.choices[output.choice]
            choice.finish = output.finish or choice.finish


# The codec


def run_codec(draw: Random) -> str:
    """Give each decoder damaged, foreign and random bytes; returns what is wrong."""
    for name, inbound in INBOXES.items():
        decode = Decoder(inbound, BOOT).decode
        for _ in range(20):
            data = _bytes(draw)
            try:
                _, frame = decode(data)
            except FrameError:
                continue
            except Exception as error:
                return f"codec of {name}: {type(error).__name__} for {data[:60]!r}"
            if type(frame) not in (getattr(inbound, "__args__", None) or (inbound,)):
                return f"codec of {name}: takes {type(frame).__name__}"
    return ""


def _bytes(draw: Random) -> bytes:
    frame = draw.choice(SAMPLES)
    good = Encoder(Source(Role.API, 0, Epoch(1)), BOOT).encode(frame)
    kind = draw.random()
    if kind < 0.3:
        return mutate_bytes(good, draw)
    body = msgspec.msgpack.encode(frame)
    if kind < 0.9:
        # The checksum fits, so the body is looked at.
        return sealed(mutate_bytes(body, draw), draw.choice((tag(frame), draw.randrange(60))))
    return draw.randbytes(draw.randrange(200))


# The cores


def run_storm(draw: Random, prepared_kinds: "dict[str, tuple[Any, Any]]") -> str:
    """Send senseless frames to the cores of an engine at work; returns what is wrong."""
    kind = draw.choice(KINDS)
    made, expected = prepared_kinds[kind]
    engine = make_engine(kind, Random(draw.random()))
    are_real = draw.random() < 0.5
    maker = FrameMaker(draw, tuple(engine.epochs.values()), is_foreign=not are_real)
    seen = _eavesdrop(engine) if are_real else []
    running = [
        _begin(engine, request, None if are_real else answer) for request, answer in zip(made, expected, strict=True)
    ]
    for _ in range(STORM_FRAMES):
        engine.steps(draw.randrange(20))
        _send_one(engine, draw, maker, seen)
        _drop_undeliverable(engine)
    engine.wire.fault = None
    engine.finish(running)
    if not are_real:
        for history in running:
            history.check()
    elif not all(history.is_over for history in running):
        return f"requests hang after the storm ({kind})"
    late = [engine.begin(request, answer) for request, answer in zip(made, expected, strict=True)]
    engine.finish(late)
    for history in late:
        history.check()
    return ""


def _begin(engine: FaultyEngine, request: Any, expected: list[Choice] | None) -> History:
    if expected is not None:
        return engine.begin(request, expected)
    engine._last_rid += 1
    witness = Witness(Rid(engine._last_rid.to_bytes(16, "big")), request.n)
    engine.send(engine.client.generate(request, witness, engine.clock.now()))
    return witness


def _eavesdrop(engine: FaultyEngine) -> list[tuple[str, msgspec.Struct]]:
    """Return the list to which every frame that is sent is added, with its destination."""
    seen: list[tuple[str, msgspec.Struct]] = []

    def listen(destination: str, data: bytes) -> list[bytes]:
        _, inbound = _core(engine, destination)
        if inbound is not None and destination in TARGET_NAMES:
            with suppress(FrameError):
                seen.append((destination, Decoder(inbound, engine.wire.boot_id).decode(data)[1]))
            del seen[:-200]
        return [data]

    engine.wire.fault = listen
    return seen


def _core(engine: FaultyEngine, name: str) -> tuple[Any, Any]:
    try:
        _, core = engine.pump.core(name)
    except KeyError:
        return None, None
    return core, core.inbound


def _send_one(engine: FaultyEngine, draw: Random, maker: FrameMaker, seen: list[tuple[str, msgspec.Struct]]) -> None:
    """Have one frame arrive, from a process that could have sent it."""
    try:
        if seen and draw.random() < 0.8:
            name, frame = draw.choice(seen[-30:])
            frame = maker.changed(frame)
        else:
            name = process_name(draw.choice(TARGETS), 0)
            frame = maker.frame(_core(engine, name)[1])
    except ValueError:
        # Columns of ids that do not pass the codec.
        return
    if isinstance(frame, SchedulerHello):
        # By design a worker ends that cannot allocate what the scheduler has agreed upon.
        frame = msgspec.structs.replace(
            frame, page_count=engine.config.worker.max_total_tokens // engine.config.worker.page_size
        )
    if isinstance(frame, Step | StepResult) and seen:
        # One that is the next in number is believed, whatever it holds: nothing but the device could tell.
        frame = msgspec.structs.replace(frame, step=frame.step % 1000 + 10**6)
    role = next(role for role in Role if process_name(role, 0) == name)
    sender = draw.choice(SENDERS.get(role, (Role.API,)))
    epoch = Epoch(max(0, engine.epochs[sender] - draw.choice((0, 0, 0, 1))))
    try:
        data = Encoder(Source(sender, 0, epoch), engine.wire.boot_id).encode(frame)
    except (OverflowError, ValueError, msgspec.MsgspecError):
        return
    engine.pump.put(name, data)


def _drop_undeliverable(engine: FaultyEngine) -> None:
    waiting = engine.pump._waiting
    kept = [one for one in waiting if one[0] in engine.pump.cores()]
    if len(kept) < len(waiting):
        waiting.clear()
        waiting.extend(kept)


def run_case(case: int, seed: int, prepared_kinds: "dict[str, tuple[Any, Any]]") -> str:
    """Run one case; returns what is wrong."""
    draw = Random(f"{seed}:{case}")
    try:
        return run_codec(draw) or run_storm(draw, prepared_kinds)
    except BaseException as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if ".venv" not in frame.filename]
        at = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames[-2:]]
        return f"{type(error).__name__} at {' < '.join(reversed(at))}: {str(error)!r:.100}"


def fuzz(cases: Iterator[int], seed: int = 0) -> tuple[int, list[Finding]]:
    """Run cases; returns how many and what was found."""
    kinds = {kind: prepared(kind, SIMULATED, PROMPTS) for kind in KINDS}
    return run_guarded(lambda case: run_case(case, seed, kinds), cases, limit_s=30.0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    count, findings = fuzz(until(arguments.seconds), arguments.seed)
    print_kinds(findings)
    print(f"{count} storms of {STORM_FRAMES} frames with seed {arguments.seed}: {len(findings)} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
