"""LocalEngine with two steps in flight, as the worker process runs: a step is launched when the scheduler issues it."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from quartet.wire.frames import Step
from quartet.wire.ids import Epoch
from tests.support.local_engine import LocalEngine


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


def generate_ahead(
    engine: LocalEngine, prompts: list[list[int]], params: list[dict[str, Any]], seen: Seen
) -> tuple[list[list[int]], list[list[float]]]:
    """Run the prompts together, each with sampling parameters of its own (temperature 0 where they name none).

    `engine` has been made with two steps in flight. Returns the output ids of each, and their log-probabilities where
    they were requested."""
    assert engine.max_in_flight == 2
    launch = engine.runner.launch

    def noting(step: Step, scheduler_epoch: Epoch) -> Any:
        in_flight = launch(step, scheduler_epoch)
        seen.note(in_flight.rows)
        return in_flight

    engine.runner.launch = noting
    try:
        streams = engine.run(prompts, params)
    finally:
        del engine.runner.launch
    return [stream.outputs for stream in streams], [stream.logprobs for stream in streams]
