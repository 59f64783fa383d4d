"""The whole engine in one synchronous rig: Engine, scheduler, simulated worker and detokenizer on in-memory links.

Any of them can be killed; its successor has the next epoch, and everybody is told as the supervisor would tell them.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from detok_proc.core import DetokCore
from detok_proc.incremental import DecoderFactory
from quartet.client.engine import Engine
from quartet.runtime.clock import ManualClock
from quartet.runtime.memory import MemoryNetwork
from quartet.wire.codec import Source
from quartet.wire.config import Config, ResolvedModel, SchedulerConfig, WorkerConfig
from quartet.wire.frames import (
    ApiInbound,
    DetokInbound,
    Encode,
    Encoded,
    IdsPrompt,
    ProcessStatus,
    ProcessTable,
    SchedulerHello,
    SchedulerInbound,
    Step,
    TokenizerInbound,
    WorkerHello,
    WorkerInbound,
)
from quartet.wire.ids import Epoch, Role, process_name
from scheduler_proc.core.events import WorkerLost
from scheduler_proc.core.scheduler import Scheduler
from scheduler_proc.worker_session import WorkerSession
from tests.golden.oracles import FOLDER
from worker_proc.session import Session
from worker_proc.simulated import SimulatedRunner

MODEL = FOLDER / "models" / "qwen3"
ROLES = (Role.API, Role.TOKENIZER, Role.SCHEDULER, Role.WORKER, Role.DETOK)


class MemoryContext:
    """A Context on a MemoryNetwork."""

    def __init__(self, rig: "MemoryEngine", role: Role) -> None:
        self.role, self.rank, self.epoch = role, 0, rig.epochs[role]
        self.name = process_name(role, 0)
        self.config = rig.config
        self.clock = rig.clock
        self.send = rig.network.sender(Source(role, 0, self.epoch))
        self._rig = rig

    @property
    def process_table(self) -> ProcessTable:
        return self._rig.process_table()

    def set_phase(self, phase: str, deadline_s: float = 0.0) -> None: ...

    def progress(self) -> None: ...

    def blocking_link(self) -> Any:
        raise NotImplementedError


class MemoryEngine:
    """`run()` delivers frames until nothing moves. Works inside a running event loop, for the engine's futures."""

    def __init__(self, **scheduler: Any) -> None:
        vocab = 512
        self.config = Config(
            scheduler=SchedulerConfig(**{"chunked_prefill_size": 64, "max_running_requests": 8, **scheduler}),
            worker=WorkerConfig(simulated_worker=True, max_total_tokens=2048),
            resolved=ResolvedModel(str(MODEL), "tiny", "Qwen3ForCausalLM", vocab, 1024, (2,)),
        )
        self.clock = ManualClock()
        self.network = MemoryNetwork()
        self.epochs = {role: Epoch(1) for role in ROLES}
        self._factory = DecoderFactory(Path(MODEL))
        self._start: dict[Role, Callable[[], None]] = {
            Role.TOKENIZER: self._start_tokenizer,
            Role.SCHEDULER: self._start_scheduler,
            Role.WORKER: self._start_worker,
            Role.DETOK: self._start_detok,
        }
        self.engine = Engine(MemoryContext(self, Role.API))
        self.network.bind("api-0", ApiInbound, self.engine.on_frame)
        for start in self._start.values():
            start()
        self.engine.on_process_table(self.process_table())
        self.run()

    def process_table(self) -> ProcessTable:
        return ProcessTable([ProcessStatus(role, 0, 1, self.epochs[role], "ready", "", 0) for role in ROLES], False)

    def kill(self, role: Role) -> None:
        """Replace a process by its successor, which knows nothing, and tell everybody."""
        self.network.unbind(process_name(role, 0))
        self.epochs[role] = Epoch(self.epochs[role] + 1)
        self._start[role]()
        self.engine.on_process_table(self.process_table())
        event = self._session.on_processes(self.process_table().processes)
        if event is not None:
            self._handle(event)
        self._greet()

    def deliver(self, frames: int) -> None:
        """Deliver at most that many frames."""
        for _ in range(frames):
            if not self.network.deliver():
                return

    def run(self) -> None:
        self.network.run_until_idle()

    def second(self) -> None:
        """Let a second pass, as the edge's live set does."""
        self.clock.advance(1.0)
        self.engine.send_live_requests()
        self.run()

    def _start_tokenizer(self) -> None:
        send = self.network.sender(Source(Role.TOKENIZER, 0, self.epochs[Role.TOKENIZER]))

        def encode(source: Source, job: Encode) -> None:
            assert isinstance(job.prompt, IdsPrompt)
            send(job.reply_to, Encoded(job.job, job.prompt.ids, "", job.params))

        self.network.bind("tokenizer-0", TokenizerInbound, encode)

    def _start_detok(self) -> None:
        core = DetokCore(self._factory)
        send = self.network.sender(Source(Role.DETOK, 0, self.epochs[Role.DETOK]))

        def handle(source: Source, frame: Any) -> None:
            for destination, answer in core.handle(source, frame):
                send(destination, answer)

        self.network.bind("detok-0", DetokInbound, handle)

    def _start_scheduler(self) -> None:
        model = self.config.require_model()
        epoch = self.epochs[Role.SCHEDULER]
        self.scheduler = Scheduler(
            self.config.scheduler, self.config.worker.page_size, model.context_length, model.eos_token_ids
        )
        self._session = WorkerSession(epoch)
        self._scheduler_send = self.network.sender(Source(Role.SCHEDULER, 0, epoch))
        self.network.bind("scheduler-0", SchedulerInbound, self._on_scheduler_frame)

    def _on_scheduler_frame(self, source: Source, frame: Any) -> None:
        if isinstance(frame, WorkerHello):
            answer = self._session.on_hello(source, frame)
            if isinstance(answer, SchedulerHello):
                self._scheduler_send("worker-0", answer)
            elif answer is not None:
                self._handle(answer)
            return
        if hasattr(frame, "scheduler_epoch"):
            self._session.check(source, frame.scheduler_epoch)
        self._handle(frame)

    def _handle(self, event: "msgspec.Struct | WorkerLost | Any") -> None:
        for destination, frame in self.scheduler.handle(event, self.clock.now()):
            self._scheduler_send(destination, frame)
        self.scheduler.audit()

    def _start_worker(self) -> None:
        epoch = self.epochs[Role.WORKER]
        self._runner = SimulatedRunner(self.config, self.clock, lambda seconds: None)
        self._worker_session = Session(epoch, lambda: self._runner.capacity)
        self._worker_send = self.network.sender(Source(Role.WORKER, 0, epoch))
        self.network.bind("worker-0", WorkerInbound, self._on_worker_frame)
        self._greet()

    def _greet(self) -> None:
        hello = self._worker_session.due_hello(self.process_table(), self.clock.now())
        if hello is not None:
            self._worker_send("scheduler-0", hello)

    def _on_worker_frame(self, source: Source, frame: Any) -> None:
        session = self._worker_session
        if isinstance(frame, SchedulerHello) and session.accepts_hello(source.epoch, frame):
            self._runner.reset()
            self._runner.allocate(frame.page_count)
            self._worker_send("scheduler-0", session.begin(source.epoch))
        elif isinstance(frame, Step) and session.accepts_step(source.epoch, frame):
            self._worker_send("scheduler-0", self._runner.launch(frame, source.epoch).wait())
