"""The whole engine in one synchronous rig: client, scheduler, simulated worker and detokenizer on the in-memory wire.

Any of them can be killed; its successor has the next epoch, and every core gets the process table as from a supervisor.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from detok_proc.core import DetokCore
from detok_proc.incremental import DecoderFactory
from quartet.client.async_engine import AsyncEngine
from quartet.client.core import ClientCore
from quartet.runtime.clock import ManualClock
from quartet.runtime.core import Core, Metrics, Sent
from quartet.runtime.memory import MemoryWire
from quartet.runtime.pump import Pump
from quartet.wire.codec import Source
from quartet.wire.config import Config, ResolvedModel, SchedulerConfig, WorkerConfig
from quartet.wire.frames import Encode, Encoded, IdsPrompt, LastEnd, ProcessStatus, ProcessTable, TokenizerInbound
from quartet.wire.ids import Epoch, Role, process_name
from tests.golden.oracles import FOLDER
from tests.support.local_engine import AuditedScheduler
from worker_proc.core import WorkerCore
from worker_proc.simulated import SimulatedRunner

MODEL = FOLDER / "models" / "qwen3"
ROLES = (Role.API, Role.TOKENIZER, Role.SCHEDULER, Role.WORKER, Role.DETOK)


class IdsTokenizer:
    """A tokenizer core for prompts of ids."""

    inbound: Any = TokenizerInbound

    def handle(self, source: Source, frame: Any, now: float) -> list[Sent]:
        if not isinstance(frame, Encode):
            return []
        assert isinstance(frame.prompt, IdsPrompt)
        return [(frame.reply_to, Encoded(frame.job, frame.prompt.ids, "", frame.params))]

    def tick(self, now: float) -> list[Sent]:
        return []

    def next_deadline(self) -> float | None:
        return None

    def is_idle(self) -> bool:
        return True

    def metrics(self) -> Metrics:
        return Metrics({}, {})


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
        self.last_end = LastEnd.NONE
        """How processes have died: by nothing that would be held against a request."""
        self.wire = MemoryWire()
        self.pump = self._make_pump()
        self.epochs = {role: Epoch(0) for role in ROLES}
        self._factory = DecoderFactory(Path(MODEL))
        self._make: dict[Role, Callable[[], Core]] = {
            Role.API: lambda: ClientCore("api-0"),
            Role.TOKENIZER: IdsTokenizer,
            Role.SCHEDULER: lambda: AuditedScheduler(self.config, self.epochs[Role.SCHEDULER]),
            Role.WORKER: self._make_worker,
            Role.DETOK: lambda: DetokCore(self._factory),
        }
        self._cores: dict[Role, Core] = {}
        for role in ROLES:
            self._start(role)
        self.pump.announce(self.process_table())
        self.run()

    def _make_pump(self) -> Pump:
        return Pump(self.clock, self.wire)

    @property
    def scheduler(self) -> Any:
        return getattr(self._cores[Role.SCHEDULER], "scheduler")  # noqa: B009

    def scheduler_gauges(self) -> Mapping[str, float]:
        """Return the scheduler's gauges, as its Snapshots carry them."""
        return self.metrics_of(Role.SCHEDULER).gauges

    def metrics_of(self, role: Role) -> Metrics:
        """Return what the Snapshots of a process carry."""
        return self._cores[role].metrics()

    def metric(self, name: str) -> float:
        """Return a metric, summed over the processes."""
        found = [core.metrics() for core in self._cores.values()]
        return sum(metrics.counters.get(name, 0) + metrics.gauges.get(name, 0) for metrics in found)

    def process_table(self) -> ProcessTable:
        rows = [ProcessStatus(role, 0, 1, self.epochs[role], "ready", "", 0, self.last_end) for role in ROLES]
        return ProcessTable(rows, False)

    def send(self, sent: Iterable[Sent]) -> None:
        """Send what a call of the client has returned."""
        self.pump.send(Source(Role.API, 0, self.epochs[Role.API]), sent)

    def kill(self, role: Role) -> None:
        """Replace a process by an empty successor, and announce it to every core.

        A new client has a new `engine`."""
        self._start(role)
        self.pump.announce(self.process_table())

    def deliver(self, frames: int) -> None:
        """Deliver at most that many frames."""
        for _ in range(frames):
            if not (self.pump.deliver() or self.pump.tick()):
                return

    @property
    def is_busy(self) -> bool:
        """Whether a frame waits, or a step is in flight."""
        return self.pump.is_busy or not self._cores[Role.WORKER].is_idle()

    def run(self) -> None:
        self.pump.run(limit=1_000_000)

    def second(self) -> None:
        """Let a second pass: the client names its live requests."""
        self.clock.advance(1.0)
        self.run()

    def _start(self, role: Role) -> None:
        self.epochs[role] = Epoch(self.epochs[role] + 1)
        core = self._cores[role] = self._make[role]()
        self.pump.add(process_name(role, 0), Source(role, 0, self.epochs[role]), core)
        if isinstance(core, ClientCore):
            self.engine = AsyncEngine(core, self, self.clock)

    def _make_worker(self) -> WorkerCore:
        runner = SimulatedRunner(self.config, self.clock, lambda seconds: None)
        return WorkerCore(self.epochs[Role.WORKER], runner, self.clock)
