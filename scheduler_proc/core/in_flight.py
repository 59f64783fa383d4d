"""Steps issued whose results are not back: their order, their durations, and the requests of their rows.

A result row names a generation, which is one stay of a request in the batch. Its entry in `by_generation` lives until
the last row in flight is back, even if the request has left its slot meanwhile.
"""

import collections
from dataclasses import dataclass, field

from quartet.wire.ids import Epoch
from scheduler_proc.core.meters import DeviceMeter
from scheduler_proc.core.request import Request, RequestState
from scheduler_proc.core.step_time_model import StepTimeModel

MAX_STEPS = 2
"""The device works on one step while the next is prepared."""


@dataclass(slots=True)
class IssuedStep:
    """A step in flight: its number, when it was issued, what the model of step times must know of it, and its prompt
    tokens; whether rows decode in it; whose chunks it computes, with their generations, and whether each is the last.
    """

    step: int
    issued_s: float
    features: list[float]
    prefill_tokens: int = 0
    has_rows: bool = False
    prefilled: list[tuple[Request, int, bool]] = field(default_factory=list)


class StepsInFlight:
    """The steps of one worker incarnation after the other; step numbers and generations are never used twice.

    Args:
        time_model: learns from each result how long the step took; None if no setting needs it.
    """

    def __init__(self, time_model: StepTimeModel | None) -> None:
        self.worker_epoch: Epoch | None = None
        self.last_step = 0
        self.steps: collections.deque[IssuedStep] = collections.deque()
        self.by_generation: dict[int, Request] = {}
        self._time_model = time_model
        self._last_generation = 0
        self._last_result_s = 0.0
        self._device = DeviceMeter()

    @property
    def has_room(self) -> bool:
        """Say whether the worker may be given another step."""
        return self.worker_epoch is not None and len(self.steps) < MAX_STEPS

    @property
    def oldest(self) -> IssuedStep | None:
        """The step whose result is due next."""
        return self.steps[0] if self.steps else None

    def start(self, epoch: Epoch) -> None:
        """A worker is up."""
        self.worker_epoch = epoch

    def stop(self) -> None:
        """The worker is lost."""
        self.worker_epoch = None

    def token_cap(self, target_s: float, rows: list[Request], chunk_context: int) -> int | None:
        """Return how many prompt tokens keep a step with these rows within `target_s`, or None for no bound (U1)."""
        if self._time_model is None or not rows:
            return None
        return self._time_model.trusted_budget(target_s, len(rows), _context_tokens(rows), chunk_context)

    def issue(
        self, rows: list[Request], prefilled: list[Request], prefill_tokens: int, prefill_context: int, now: float
    ) -> None:
        """The next step is on its way to the worker. It computes one token of each of `rows` and chunks of `prefilled`,
        of `prefill_tokens` in all and `prefill_context` in the mean."""
        features = []
        if self._time_model is not None:
            features = StepTimeModel.features(len(rows), _context_tokens(rows), prefill_tokens, prefill_context)
        self.last_step += 1
        # A request whose last chunk is launched is running.
        chunks = [(request, request.generation, request.state is RequestState.RUNNING) for request in prefilled]
        self.steps.append(IssuedStep(self.last_step, now, features, prefill_tokens, bool(rows), chunks))

    def take(self, step: int, now: float) -> bool:
        """The result of a step has come; say whether it is that of the oldest step in flight."""
        if not self.steps or self.steps[0].step != step:
            return False
        done = self.steps.popleft()
        # The device began when the step was issued, or else when the one before it was done.
        took_s = now - max(done.issued_s, self._last_result_s)
        if self._time_model is not None:
            self._time_model.learn(done.features, took_s)
        self._device.on_step(took_s, done.has_rows, bool(done.prefilled))
        for request, generation, is_last in done.prefilled:
            if request.generation == generation and request.state in (RequestState.PREFILLING, RequestState.RUNNING):
                request.prefill_meter.on_step(took_s)
                if is_last:
                    request.timeline.on_prefilled(now, self._device)
        self._last_result_s = now
        return True

    def find(self, step: int) -> IssuedStep | None:
        """Return a step that is in flight."""
        return next((issued for issued in self.steps if issued.step == step), None)

    def clear(self) -> None:
        """Forget all steps; their results will not come, or are not wanted."""
        self.steps.clear()
        self.by_generation.clear()

    def begin_generation(self, request: Request) -> None:
        """Give a request that enters the batch a new generation."""
        self._last_generation += 1
        request.generation = self._last_generation
        self.by_generation[request.generation] = request

    def end_generation(self, request: Request) -> None:
        """The request has left its slot; the entry stays while rows of it are in flight."""
        if request.in_flight == 0:
            self.by_generation.pop(request.generation, None)


def _context_tokens(rows: list[Request]) -> int:
    return sum(request.lease.num_computed_tokens for request in rows)
