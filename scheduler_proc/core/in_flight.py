"""Steps issued whose results are not back: their order, their durations, and the requests of their rows.

A result row names a generation, which is one stay of a request in the batch. Its entry in `by_generation` lives until
the last row in flight is back, even if the request has left its slot meanwhile.
"""

import collections
from dataclasses import dataclass, field

from quartet.wire.config import SchedulerConfig
from quartet.wire.ids import Epoch
from scheduler_proc.core.meters import DeviceMeter
from scheduler_proc.core.request import Request, RequestState
from scheduler_proc.core.slack import Slack, StepPlan
from scheduler_proc.core.step_cost import StepLoad, pairs
from scheduler_proc.core.step_time_model import StepTimeModel
from scheduler_proc.core.step_work import StepWork

MAX_STEPS = 2
"""The device works on one step while the next is prepared."""


@dataclass(slots=True)
class IssuedStep:
    """A step in flight: its number, when it was issued, what it computes; whether rows decode in it; whose chunks it
    computes, with their generations, and whether each is the last; its drafts by generation."""

    step: int
    issued_s: float
    load: StepLoad | None
    prefill_tokens: int = 0
    has_rows: bool = False
    prefilled: list[tuple[Request, int, bool]] = field(default_factory=list)
    drafts: dict[int, list[int]] = field(default_factory=dict)


class StepsInFlight:
    """The steps of one worker incarnation after the other; step numbers and generations are never used twice.

    With a target for the time between tokens, or to hold KV of sessions, it learns how long steps take; with step_order
    slack it plans by that.
    """

    def __init__(self, config: SchedulerConfig) -> None:
        self.worker_epoch: Epoch | None = None
        self.last_step = 0
        self._limit = MAX_STEPS
        self.steps: collections.deque[IssuedStep] = collections.deque()
        self.by_generation: dict[int, Request] = {}
        self._target_s = config.tbt_target_ms / 1000
        learns = self._target_s > 0 or config.radix_eviction_policy == "session"
        self._time_model = model = StepTimeModel() if learns else None
        self._slack = Slack(self._target_s, model) if model and config.step_order == "slack" else None
        self._last_generation = 0
        self._last_result_s = 0.0
        self._device = DeviceMeter()

    @property
    def has_room(self) -> bool:
        """Say whether the worker may be given another step."""
        return self.worker_epoch is not None and len(self.steps) < self._limit

    @property
    def oldest(self) -> IssuedStep | None:
        """The step whose result is due next."""
        return self.steps[0] if self.steps else None

    def overlap(self, is_wanted: bool) -> None:
        """Have two steps in flight from here on, or one; none goes with one that has drafts (STEP-19)."""
        has_drafts = bool(self.steps) and bool(self.steps[-1].drafts)
        self._limit = MAX_STEPS if is_wanted and not has_drafts else 1

    def start(self, epoch: Epoch) -> None:
        """A worker is up."""
        self.worker_epoch = epoch

    def stop(self) -> None:
        """The worker is lost."""
        self.worker_epoch = None

    def plan(self, rows: list[Request], backlog_tokens: int, chunk_context: int, now: float) -> StepPlan:
        """Say whether rows take part in the next step, and how much prompt has time beside them (U1)."""
        model, count = self._time_model, len(rows)
        if model is None or not self._target_s or not (rows or self._slack):
            return StepPlan(True, None)
        context = _context_tokens(rows)
        if self._slack is None:
            return StepPlan(True, model.prefill_budget(self._target_s, count, context, chunk_context))
        if not backlog_tokens:
            return StepPlan(True, 0)
        end_s = self._last_result_s
        for step in self.steps:
            end_s = max(end_s, step.issued_s) + (0.0 if step.load is None else model.predict(step.load))
        is_fresh = bool(self.steps) and self.steps[-1].has_rows
        return self._slack.plan(count, context, chunk_context, backlog_tokens, max(end_s, now), is_fresh)

    def prefill_s(self, tokens: int) -> float:
        """Return how long a prompt of so many tokens takes; 0 while that is not known."""
        model = self._time_model
        return 0.0 if model is None else model.predict(StepLoad(tokens, pairs(0, tokens), 0, 0))

    def issue(self, work: StepWork, now: float) -> None:
        """The next step is on its way to the worker."""
        rows, prefill, load = work.rows, work.prefill, None
        if self._time_model is not None:
            load = prefill.load(len(rows), _context_tokens(rows))
        self.last_step += 1
        # A request whose last chunk is launched is running.
        chunks = [(request, request.generation, request.state is RequestState.RUNNING) for request in prefill.requests]
        self.steps.append(IssuedStep(self.last_step, now, load, prefill.tokens, bool(rows), chunks, work.drafts))

    def take(self, step: int, now: float) -> IssuedStep | None:
        """The result of a step has come; return the step if it is the oldest in flight."""
        if not self.steps or self.steps[0].step != step:
            return None
        done = self.steps.popleft()
        # The device began when the step was issued, or else when the one before it was done.
        took_s = now - max(done.issued_s, self._last_result_s)
        if self._time_model is not None and done.load is not None:
            if self._slack is not None and done.has_rows:
                self._slack.on_rows(int(done.load.decode_rows), self._time_model.predict(done.load), took_s, now)
            self._time_model.learn(done.load, took_s)
        self._device.on_step(took_s, done.has_rows, bool(done.prefilled))
        for request, generation, is_last in done.prefilled:
            if request.generation == generation and request.state in (RequestState.PREFILLING, RequestState.RUNNING):
                request.prefill_meter.on_step(took_s)
                if is_last:
                    request.timeline.on_prefilled(now, self._device)
        self._last_result_s = now
        return done

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
