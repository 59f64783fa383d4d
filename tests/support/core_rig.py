"""A scheduler core, a strict worker and its clients on one pump, for unit and property tests."""

import collections
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from quartet.runtime.clock import ManualClock
from quartet.runtime.core import Metrics, Sent
from quartet.runtime.pump import Pump
from quartet.wire.codec import Source
from quartet.wire.config import SchedulerConfig
from quartet.wire.frames import SamplingParams, Step, StepFailed, Submit, pack_ids
from quartet.wire.ids import Epoch, Rid, Role
from scheduler_proc.core.checkpoints import Spacing
from scheduler_proc.core.events import Event, WorkerLost, WorkerUp
from scheduler_proc.core.scheduler import Scheduler
from tests.support.stream_client import ClientStream as Stream
from tests.support.stream_client import StreamClient
from tests.support.strict_worker import StrictWorker, next_token

TEST = Source(Role.API, 0, Epoch(1))
VOCAB = 97
Oracle = Callable[[Sequence[int], int], int]
EOS = 0


class EventCore:
    """A scheduler that is driven by its events, frames or internal ones; audited after each."""

    inbound: Any = Event

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.watchers: list[Callable[[Any], None]] = []

    def handle(self, source: Source, frame: Any, now: float) -> list[Sent]:
        sent = self.scheduler.handle(frame, now)
        for watch in self.watchers:
            for _, one in sent:
                watch(one)
        self.scheduler.audit()
        return sent

    def tick(self, now: float) -> list[Sent]:
        raise AssertionError("the test sends Ticks itself")

    def next_deadline(self) -> float | None:
        return None

    def is_idle(self) -> bool:
        return self.scheduler.is_idle()

    def metrics(self) -> Metrics:
        return Metrics(*self.scheduler.snapshot())


class ManualWorker:
    """Keeps the steps that are issued; the rig runs one when the test says so."""

    inbound: Any = Step

    def __init__(self) -> None:
        self.steps: collections.deque[Step] = collections.deque()

    def handle(self, source: Source, frame: Any, now: float) -> list[Sent]:
        assert isinstance(frame, Step)
        self.steps.append(frame)
        return []

    def tick(self, now: float) -> list[Sent]:
        return []

    def next_deadline(self) -> float | None:
        return None

    def is_idle(self) -> bool:
        return not self.steps

    def metrics(self) -> Metrics:
        return Metrics({}, {})


class CoreRig:
    """Drives a Scheduler; audits after every event and keeps what each stream has received. It is its own clock.

    With `checkpoints` of 0 and more the model has states, and as many copies of them."""

    def __init__(
        self,
        pages: int = 64,
        page_size: int = 4,
        slots: int = 8,
        context: int = 4096,
        oracle: Oracle = next_token,
        checkpoints: int = -1,
        spacing: Spacing | None = None,
        windows: tuple[tuple[int, int], ...] = (),
        **config: Any,
    ) -> None:
        config.setdefault("chunked_prefill_size", 4 * page_size)
        self.config = SchedulerConfig(max_running_requests=slots, **config)
        self.scheduler = Scheduler(self.config, page_size, context, (EOS,))
        self.page_size, self.pages, self.slots = page_size, pages, slots
        self.checkpoints, self.windows = checkpoints, windows
        if spacing is not None:
            self.scheduler.kv.spacing = spacing
        self.clock = ManualClock()
        self.client = StreamClient()
        self.streams, self.handles = self.client.streams, self.client.handles
        manual_worker = ManualWorker()
        self.steps = manual_worker.steps
        self._pump = Pump(self.clock)
        self._core = EventCore(self.scheduler)
        self._pump.add("scheduler-0", TEST, self._core)
        self._pump.add("worker-0", TEST, manual_worker)
        for name in ("api-0", "detok-0"):
            self._pump.add(name, TEST, self.client)
        self.epoch = 0
        self.oracle = oracle
        self.worker: StrictWorker | None = None
        self.worker_up()

    @property
    def now(self) -> float:
        """The time in seconds; only forward."""
        return self.clock.now()

    @now.setter
    def now(self, time_s: float) -> None:
        self.clock.advance_to(time_s)

    def watch(self, on_frame: Callable[[Any], None]) -> None:
        """Call the function with each frame that the scheduler sends from here on."""
        self._core.watchers.append(on_frame)

    def worker_up(self, mixed_tokens: int = 0) -> None:
        self.epoch += 1
        own = self.oracle, self.checkpoints, self.windows
        self.worker = StrictWorker(Epoch(self.epoch), self.pages, self.page_size, self.slots, VOCAB, *own)
        states = self.checkpoints >= 0, max(0, self.checkpoints)
        self.send(WorkerUp(Epoch(self.epoch), self.pages, self.slots, True, mixed_tokens, *states, self.windows))

    def worker_lost(self, was_killed: bool = True) -> None:
        self.worker = None
        self.steps.clear()
        self.send(WorkerLost(was_killed))

    def send(self, event: Any) -> None:
        self._pump.send(TEST, [("scheduler-0", event)])
        self._pump.run()

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

    def fail_step(self, kind: str = "error") -> None:
        """Let the worker fail the oldest step: slots change as its frame says, nothing of it is computed."""
        assert self.worker is not None
        failed = self.steps[0]
        for step in self.steps:
            self.worker.apply_changes(step)
        self.steps.clear()
        self.send(StepFailed(Epoch(1), failed.step, kind, "made to fail"))

    def run(self, limit: int = 10_000) -> None:
        """Run until nothing is in flight."""
        for _ in range(limit):
            if not self.step():
                return
        raise AssertionError("the scheduler never rests")

    def outputs(self, rid: Rid) -> list[int]:
        return self.streams[rid, 0].outputs
