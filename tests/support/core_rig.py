"""A scheduler core, a strict worker and an API process in one synchronous rig, for unit and property tests."""

import collections
from dataclasses import dataclass, field
from typing import Any

import msgspec

from quartet.wire.config import SchedulerConfig
from quartet.wire.frames import (
    Accepted,
    Close,
    End,
    Failed,
    Open,
    Rejected,
    SamplingParams,
    Step,
    StepFailed,
    Submit,
    Tokens,
    pack_ids,
    unpack_ids,
)
from quartet.wire.ids import Epoch, Rid
from scheduler_proc.core.events import WorkerLost, WorkerUp
from scheduler_proc.core.scheduler import Scheduler
from tests.support.strict_worker import StrictWorker

VOCAB = 97
EOS = 0


@dataclass
class Stream:
    """What the API process knows of one (rid, choice)."""

    submit: Submit
    outputs: list[int] = field(default_factory=list)
    ending: str | None = None
    end: End | None = None


class CoreRig:
    """Drives a Scheduler; audits after every event and keeps what each stream has received."""

    def __init__(self, pages: int = 64, page_size: int = 4, slots: int = 8, context: int = 4096, **config: Any) -> None:
        config.setdefault("chunked_prefill_size", 4 * page_size)
        self.config = SchedulerConfig(max_running_requests=slots, **config)
        self.scheduler = Scheduler(self.config, page_size, context, (EOS,))
        self.page_size, self.pages, self.slots = page_size, pages, slots
        self.now = 0.0
        self.streams: dict[tuple[Rid, int], Stream] = {}
        self.handles: dict[int, tuple[Rid, int]] = {}
        self.steps: collections.deque[Step] = collections.deque()
        self.other: list[tuple[str, msgspec.Struct]] = []
        self.epoch = 0
        self.worker: StrictWorker | None = None
        self.worker_up()

    def worker_up(self) -> None:
        self.epoch += 1
        self.worker = StrictWorker(Epoch(self.epoch), self.pages, self.page_size, self.slots, VOCAB)
        self.send(WorkerUp(Epoch(self.epoch), self.pages, self.slots, True))

    def worker_lost(self) -> None:
        self.worker = None
        self.steps.clear()
        self.send(WorkerLost())

    def send(self, event: Any) -> None:
        for destination, frame in self.scheduler.handle(event, self.now):
            self._take(destination, frame)
        self.scheduler.audit()

    def submit(self, prompt: list[int], max_new: int | None = 8, name: int | None = None, **fields: Any) -> Rid:
        rid = Rid((len(self.streams) if name is None else name).to_bytes(16, "big"))
        params = fields.pop("params", SamplingParams(max_new_tokens=max_new))
        frame = Submit(rid, 0, 0, "api-0", "detok-0", pack_ids(prompt), b"", params, **fields)
        self.streams[rid, 0] = Stream(frame)
        self.send(frame)
        return rid

    def resubmit(self, rid: Rid) -> None:
        """Replay as the API process does after a process has died: a later attempt with what was delivered."""
        stream = self.streams[rid, 0]
        stream.submit = msgspec.structs.replace(
            stream.submit, attempt=stream.submit.attempt + 1, output_ids=pack_ids(stream.outputs)
        )
        self.send(stream.submit)

    def step(self) -> bool:
        """Let the worker finish one step."""
        if not self.steps or self.worker is None:
            return False
        self.send(self.worker.run(self.steps.popleft()))
        return True

    def fail_step(self) -> None:
        """Let the worker fail the oldest step: slots change as its frame says, nothing of it is computed."""
        assert self.worker is not None
        failed = self.steps[0]
        for step in self.steps:
            self.worker.apply_changes(step)
        self.steps.clear()
        self.send(StepFailed(Epoch(1), failed.step, "error", "made to fail"))

    def run(self, limit: int = 10_000) -> None:
        """Run until nothing is in flight."""
        for _ in range(limit):
            if not self.step():
                return
        raise AssertionError("the scheduler never rests")

    def outputs(self, rid: Rid) -> list[int]:
        return self.streams[rid, 0].outputs

    def _take(self, destination: str, frame: msgspec.Struct) -> None:
        match frame:
            case Step():
                self.steps.append(frame)
            case Open():
                self._open(frame)
            case Tokens():
                self._tokens(frame)
            case Close():
                self.handles.pop(frame.handle, None)
            case Rejected() | Failed():
                stream = self.streams[frame.rid, frame.choice]
                assert stream.ending is None, "a request ended twice"
                stream.ending = frame.code
            case Accepted():
                pass
            case _:
                self.other.append((destination, frame))

    def _open(self, frame: Open) -> None:
        stream = self.streams[frame.rid, frame.choice]
        assert frame.attempt == stream.submit.attempt
        self.handles[frame.handle] = (frame.rid, frame.choice)
        known = unpack_ids(frame.output_ids)
        assert known[: frame.delivered_count] == stream.outputs[: frame.delivered_count]
        assert len(stream.outputs) == frame.delivered_count
        stream.outputs += known[frame.delivered_count :]

    def _tokens(self, frame: Tokens) -> None:
        rows = zip(unpack_ids(frame.handles), unpack_ids(frame.indices), unpack_ids(frame.ids), strict=True)
        for handle, index, token_id in rows:
            stream = self.streams[self.handles[handle]]
            assert stream.ending is None, "a token after the end"
            assert index == len(stream.outputs), "tokens out of order"
            stream.outputs.append(token_id)
        for end in frame.ends:
            stream = self.streams[self.handles.pop(end.handle)]
            assert stream.ending is None, "a request ended twice"
            assert end.count == len(stream.outputs)
            stream.ending, stream.end = end.reason, end
