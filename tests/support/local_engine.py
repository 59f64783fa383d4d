"""Scheduler and real runner in one process: token ids in, token ids out, no tokenizer, process or socket."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from quartet.checkpoint.resolve import resolve_model
from quartet.runtime.clock import ManualClock
from quartet.runtime.core import Sent
from quartet.runtime.pump import Pump
from quartet.wire.codec import Source
from quartet.wire.config import Config, ModelConfig, SchedulerConfig, WorkerConfig
from quartet.wire.frames import ProcessStatus, ProcessTable, SamplingParams, Submit, pack_ids
from quartet.wire.ids import Epoch, Rid, Role
from scheduler_proc.core.checkpoints import Spacing
from scheduler_proc.scheduler_core import SchedulerCore
from tests.support.stream_client import ClientStream, StreamClient
from worker_proc.contract import Runner, Start
from worker_proc.core import WorkerCore

EPOCH = Epoch(1)
API = Source(Role.API, 0, EPOCH)


def make_config(
    model: str | Path,
    dtype: str = "float32",
    scheduler: dict[str, Any] | None = None,
    tokenizer: str | Path = "",
    context_length: int = 0,
    **worker: Any,
) -> Config:
    """Return the configuration of a local engine on a model folder or `smollm2`."""
    paths = {"model_path": str(model), "tokenizer_path": str(tokenizer)}
    config = Config(
        model=ModelConfig(**paths, dtype=dtype, context_length=context_length),  # type: ignore[arg-type]
        scheduler=SchedulerConfig(**(scheduler or {})),
        worker=WorkerConfig(**{"device": "cpu", "max_total_tokens": 16384, **worker}),
    )
    return replace(config, resolved=resolve_model(config.model))


class AuditedScheduler(SchedulerCore):
    """A scheduler core that checks every invariant after every frame."""

    def handle(self, source: Source, frame: Any, now: float) -> list[Sent]:
        sent = super().handle(source, frame, now)
        self.scheduler.audit()
        return sent


class LocalEngine:
    """Runs prompts to their end, greedily. The runner is kept; each scheduler starts with an empty tree.

    Args:
        config: of model, scheduler and worker.
        max_in_flight: 1 has each step end before the next is launched, so that no step meets ids that have not reached
            the host; 2 is what a worker process does.
        start: how much the runner does beforehand.
        runner: to be used instead of one that is loaded here.
        spacing: of checkpoints of states, for prompts that are short.
    """

    def __init__(
        self,
        config: Config,
        max_in_flight: int = 1,
        start: Start = Start.FIRST,
        runner: Runner | None = None,
        spacing: Spacing | None = None,
    ) -> None:
        from worker_proc.loading import load_runner

        self.config = config
        self.max_in_flight = max_in_flight
        self.spacing = spacing or Spacing()
        self.runner: Any = load_runner(config, lambda: None, start) if runner is None else runner
        if start is Start.STANDBY:
            self.runner.load_kernels()
            self.runner.count_pages()
        self._submitted = 0
        self.restart()

    def restart(self, **scheduler: Any) -> None:
        """Begin again with an empty tree and other scheduling settings."""
        config = replace(self.config, scheduler=replace(self.config.scheduler, **scheduler))
        clock = ManualClock()
        self._scheduler = AuditedScheduler(config, EPOCH)
        self._scheduler.scheduler.kv.spacing = self.spacing
        self._client = StreamClient()
        self._pump = Pump(clock)
        for name in ("api-0", "detok-0"):
            self._pump.add(name, API, self._client)
        self._pump.add("scheduler-0", Source(Role.SCHEDULER, 0, EPOCH), self._scheduler)
        self._clock, self._worker_epoch = clock, Epoch(EPOCH - 1)
        self._begin_worker()
        self._pump.run()

    def _begin_worker(self) -> None:
        """Add a worker, in the place of another one if there is any."""
        self._worker_epoch = epoch = Epoch(self._worker_epoch + 1)
        worker = WorkerCore(epoch, self.runner, self._clock, max_in_flight=self.max_in_flight)
        self._pump.add("worker-0", Source(Role.WORKER, 0, epoch), worker)
        processes = [ProcessStatus(Role.SCHEDULER, 0, 1, EPOCH, "ready", "", 0)]
        if epoch > EPOCH:
            processes.append(ProcessStatus(Role.WORKER, 0, 1, epoch, "starting", "", 0))
        self._pump.announce(ProcessTable(processes, False))

    def generate(
        self, prompts: list[list[int]], new_tokens: int, worker_lives: tuple[int, ...] = (), **params: Any
    ) -> list[list[int]]:
        """Submit all prompts at once and run them to their ends; returns the output ids in order.

        With `worker_lives` one worker after another dies, each after so many frames."""
        streams = self.run(prompts, [{"max_new_tokens": new_tokens, **params}] * len(prompts), worker_lives)
        return [stream.outputs for stream in streams]

    def run(
        self, prompts: list[list[int]], params: list[dict[str, Any]], worker_lives: tuple[int, ...] = ()
    ) -> list[ClientStream]:
        """Submit all prompts at once, each with parameters of its own, and run them to their ends."""
        streams = []
        for prompt, own in zip(prompts, params, strict=True):
            self._submitted += 1
            rid = Rid(self._submitted.to_bytes(16, "big"))
            sampling = SamplingParams(**{"temperature": 0.0, "ignore_eos": True, **own})
            submit = Submit(rid, 0, 0, "api-0", "detok-0", pack_ids(prompt), b"", sampling)
            stream = self._client.streams[rid, 0] = ClientStream(submit)
            streams.append(stream)
            self._pump.send(API, [("scheduler-0", submit)])
        for life in worker_lives:
            for _ in range(life):
                assert self._pump.deliver() or self._pump.tick()
            self._begin_worker()
        self._pump.run()
        assert self._scheduler.is_idle() and self._client.is_idle()
        wrong = [stream.ending for stream in streams if stream.ending not in ("stop", "length")]
        assert not wrong, wrong
        return streams

    def counters(self) -> Mapping[str, float]:
        """Return what the scheduler has counted since the last restart."""
        return self._scheduler.metrics().counters

    def cached_tokens(self) -> int:
        """Return how many prompt tokens came from the tree so far."""
        return int(self._scheduler.metrics().counters["cached_tokens"])

    def retractions(self) -> int:
        """Return how often a request gave its pages back before its end, since the last restart."""
        return int(self._scheduler.metrics().counters["retractions"])
