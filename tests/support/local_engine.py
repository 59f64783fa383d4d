"""Scheduler core and real runner in one synchronous loop: token ids in, token ids out, no process and no socket."""

from collections import deque
from pathlib import Path
from typing import Any

import msgspec

from quartet.checkpoint.resolve import resolve_model
from quartet.wire.config import Config, ModelConfig, SchedulerConfig, WorkerConfig
from quartet.wire.frames import SamplingParams, Step, Submit, Tokens, pack_ids, unpack_ids
from quartet.wire.ids import Epoch, Rid
from scheduler_proc.core.events import WorkerUp
from scheduler_proc.core.scheduler import Scheduler

EPOCH = Epoch(1)


def make_config(
    model: str | Path,
    dtype: str = "float32",
    scheduler: dict[str, Any] | None = None,
    tokenizer: str | Path = "",
    **worker: Any,
) -> Config:
    """Return the configuration of a local engine on a model folder or `smollm2`."""
    settings = {"model_path": str(model), "dtype": dtype, "tokenizer_path": str(tokenizer)}
    config = Config(
        model=msgspec.convert(settings, ModelConfig),
        scheduler=SchedulerConfig(**(scheduler or {})),
        worker=WorkerConfig(**{"device": "cpu", "max_total_tokens": 16384, **worker}),
    )
    return msgspec.structs.replace(config, resolved=resolve_model(config.model))


class LocalEngine:
    """Runs prompts to their end, greedily. The runner is kept; each scheduler starts with an empty tree."""

    def __init__(self, config: Config) -> None:
        from worker_proc.loading import load_runner

        self.config = config
        self.runner = load_runner(config, lambda: None)
        self.runner.allocate(self.runner.capacity.page_count)
        self.restart()

    def restart(self, **scheduler: Any) -> None:
        """Begin again with an empty tree and other scheduling settings."""
        model, capacity = self.config.require_model(), self.runner.capacity
        config = msgspec.structs.replace(self.config.scheduler, **scheduler)
        self.runner.reset()
        self.scheduler = Scheduler(config, capacity.page_size, model.context_length, model.eos_token_ids)
        self._steps: deque[Step] = deque()
        self._outputs: dict[int, list[int]] = {}
        self._names: dict[int, int] = {}
        self._submitted = 0
        is_cpu = self.runner.capacity.device == "cpu"
        self._take(self.scheduler.handle(WorkerUp(EPOCH, capacity.page_count, capacity.max_slots, is_cpu), 0.0))

    def generate(self, prompts: list[list[int]], new_tokens: int, **params: Any) -> list[list[int]]:
        """Submit all prompts at once and run them to their ends; returns the output ids in order."""
        first = self._submitted
        for prompt in prompts:
            self._submitted += 1
            sampling = SamplingParams(
                **{"max_new_tokens": new_tokens, "temperature": 0.0, "ignore_eos": True, **params}
            )
            rid = Rid(self._submitted.to_bytes(16, "big"))
            frame = Submit(rid, 0, 0, "api-0", "detok-0", pack_ids(prompt), b"", sampling)
            self._take(self.scheduler.handle(frame, 0.0))
        while self._steps:
            result = self.runner.launch(self._steps.popleft(), EPOCH).wait()
            self._take(self.scheduler.handle(result, 0.0))
            self.scheduler.audit()
        assert self.scheduler.is_idle()
        return [self._outputs.get(number, []) for number in range(first + 1, self._submitted + 1)]

    def cached_tokens(self) -> int:
        """Return how many prompt tokens came from the tree so far."""
        return int(self.scheduler.snapshot()[1]["cached_tokens"])

    def _take(self, sent: list[tuple[str, Any]]) -> None:
        for _, frame in sent:
            match frame:
                case Step():
                    self._steps.append(frame)
                case Tokens():
                    for handle, token_id in zip(unpack_ids(frame.handles), unpack_ids(frame.ids), strict=True):
                        self._outputs.setdefault(self._names[handle], []).append(token_id)
                case _ if type(frame).__name__ == "Open":
                    self._names[frame.handle] = int.from_bytes(frame.rid, "big")
                case _ if type(frame).__name__ in ("Rejected", "Failed"):
                    raise AssertionError(f"{frame.code}: {frame.message}")
