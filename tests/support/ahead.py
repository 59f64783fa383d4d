"""LocalEngine with two steps in flight, as the worker process runs: a step is launched when the scheduler issues it.

LocalEngine by itself launches a step when the one before it has ended, so every id has reached the host by then.
"""

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

from msgspec.structs import replace

from quartet.wire.frames import Open, Step, Submit, Tokens, unpack_ids
from tests.support.local_engine import EPOCH, LocalEngine


@dataclass(slots=True)
class Seen:
    """Which steps there were: by kind (prefill, mixed, decode), and the rows of the largest decode batch."""

    kinds: Counter[str] = field(default_factory=Counter)
    most_rows: int = 0

    def note(self, step: Any) -> None:
        rows = len(step.decode)
        if step.chunks or rows:
            self.kinds["decode" if not step.chunks else "mixed" if rows else "prefill"] += 1
        self.most_rows = max(self.most_rows, rows)


class Pipeline:
    """Stands in for scheduler and runner of a LocalEngine while it generates.

    Args:
        engine: whose scheduler and runner do the work.
        params: sampling parameters of the requests, in the order of their submission.
        seen: counts the steps.

    `logprobs` are those of the output tokens, where they were asked for, by the request's rid.
    """

    def __init__(self, engine: LocalEngine, params: list[dict[str, Any]], seen: Seen) -> None:
        self._scheduler, self._runner = engine.scheduler, engine.runner
        self._params, self._seen = iter(params), seen
        self._launched: deque[tuple[int, Any]] = deque()
        self._rids: dict[int, bytes] = {}
        self.logprobs: dict[bytes, list[float]] = {}

    def handle(self, event: Any, now: float) -> list[tuple[str, Any]]:
        """Scheduler.handle; launches the steps among what it returns."""
        if isinstance(event, Submit):
            event = replace(event, params=replace(event.params, **next(self._params)))
            self.logprobs[event.rid] = []
        sent = self._scheduler.handle(event, now)
        for _, frame in sent:
            match frame:
                case Step():
                    pending = self._runner.launch(frame, EPOCH)
                    self._seen.note(pending.rows)
                    self._launched.append((frame.step, pending))
                case Open():
                    self._rids[frame.handle] = frame.rid
                case Tokens():
                    handles = unpack_ids(frame.handles)
                    for row, one in frame.logprobs:
                        self.logprobs[self._rids[handles[row]]].append(one.logprob)
        return sent

    def launch(self, step: Step, _: Any) -> Any:
        """ModelRunner.launch of a step that is under way."""
        number, pending = self._launched.popleft()
        assert number == step.step
        return pending

    def audit(self) -> None:
        self._scheduler.audit()

    def is_idle(self) -> bool:
        return self._scheduler.is_idle()


def generate_ahead(
    engine: LocalEngine, prompts: list[list[int]], params: list[dict[str, Any]], seen: Seen
) -> tuple[list[list[int]], list[list[float]]]:
    """Run the prompts together, each with sampling parameters of its own (temperature 0 where they name none).

    Returns the output ids of each, and their log-probabilities where asked for."""
    scheduler, runner = engine.scheduler, engine.runner
    pipeline = Pipeline(engine, params, seen)
    engine.scheduler = engine.runner = pipeline
    try:
        return engine.generate(prompts, 1), list(pipeline.logprobs.values())
    finally:
        engine.scheduler, engine.runner = scheduler, runner
