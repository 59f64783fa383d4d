"""The waiting queue: entries, their limit (PRI-4), the policy that orders them, and why passes stop before its end."""

import collections
from collections.abc import Collection

from quartet.wire.config import SchedulerConfig
from quartet.wire.errors import RequestError
from scheduler_proc.core.first_tokens import FirstTokens
from scheduler_proc.core.meters import STEP, WaitMeter
from scheduler_proc.core.policies import PolicyContext, make_policy
from scheduler_proc.core.priority import least_urgent
from scheduler_proc.core.radix import RadixTree
from scheduler_proc.core.request import Request

RETRY_AFTER_S = 1.0


class WaitingQueue:
    """Requests in state WAITING. Between passes their order means nothing; `order` sorts them.

    `computed_tokens` counts the prefill tokens computed so far, the clock of policies that weigh how long a request has
    waited. `stop_reasons` counts the passes that stopped before the end of the queue, `changes` the requests that were
    queued, or left the queue without being admitted. `waits` measures why those that wait do, `first_tokens` knows when
    their first token is due. `tenants` shares the service out among tenants, None if that is not wanted.
    """

    def __init__(self, config: SchedulerConfig) -> None:
        self.waiting: list[Request] = []
        self.stop_reasons: collections.Counter[str] = collections.Counter()
        self.computed_tokens = 0
        self.changes = 0
        self.waits = WaitMeter()
        self.first_tokens = FirstTokens(config)
        self._policy = policy = make_policy(config)
        self.tenants = policy.tenants
        self._admitting_passes = 0
        self._config = config
        self._context = PolicyContext(config, None, (), 0, 0)
        self._first_qseq = self._last_qseq = 0

    # Entries

    @property
    def waiting_tokens(self) -> int:
        """How many tokens the waiting requests have, of which some may be found cached."""
        return sum(request.uncomputed_tokens for request in self.waiting)

    def by_reason(self) -> dict[str, int]:
        """Return how many requests wait for a place at first (capacity), and how many again (retracted)."""
        retracted = sum(request.timeline.retractions > 0 for request in self.waiting)
        return {"capacity": len(self.waiting) - retracted, "retracted": retracted}

    def add(self, request: Request, now: float) -> None:
        """Put a request at the tail, with a new entry number (RET-7)."""
        self._number(request)
        self._enter(request, now)

    def requeue(self, request: Request, now: float) -> None:
        """Take a retracted or preempted request back where the setting requeue says (RET-7, RET-18)."""
        if self._config.requeue == "tail":
            self._number(request)
        elif self._config.requeue == "head":
            self._first_qseq -= 1
            request.qseq = self._first_qseq
        # By age it keeps its number, which is smaller than that of every later arrival.
        self._enter(request, now)

    def _enter(self, request: Request, now: float) -> None:
        request.passes_at_entry = self._admitting_passes
        request.processed_at_entry = self.computed_tokens
        if not self.waiting:
            self.waits.on_first_entry(now)
        if self.tenants is not None:
            self.tenants.on_queued(request, now)
        request.timeline.on_queued(now, len(self.waiting), self.stop_reasons, self.waits)
        self.waiting.append(request)
        self.changes += 1

    def put_first(self, requests: list[Request], now: float) -> None:
        """Put requests at the head, before all that wait: they were admitted earlier."""
        for request in [*requests, *sorted(self.waiting, key=lambda request: request.qseq)]:
            self._number(request)
        for request in requests:
            request.passes_at_entry = self._admitting_passes
            request.timeline.begin(self.waits, now)
            if self.tenants is not None:
                self.tenants.on_queued(request, now)
        self.waiting[:0] = requests
        self.changes += 1

    def remove(self, request: Request) -> None:
        """Take out a request that ends while it waits."""
        self.waiting.remove(request)
        self.changes += 1
        if self.tenants is not None:
            self.tenants.on_removed(request)

    def on_left_batch(self, request: Request, now: float) -> None:
        """A request has ended in the batch, where an earlier pass had put it."""
        if self.tenants is not None:
            self.tenants.on_left(request, now)

    def _number(self, request: Request) -> None:
        self._last_qseq += 1
        request.qseq = self._last_qseq

    def displaced_by(self, urgency: int, prompt_tokens: int, held: int = 0) -> list[Request]:
        """Return the requests that must leave so that a new one of that urgency and length can be queued.

        Raises RequestError if the queue is full of requests that are no less urgent (PRI-4). Requests that have been
        admitted before, or replayed, do not count; `held` ones, which are going to be queued, do. By tokens a queue is
        full only while something waits, so that no prompt is too long for it.
        """
        most, most_tokens = self._config.max_queued_requests, self._config.max_queued_tokens
        if not most_tokens and len(self.waiting) + held < most:
            return []
        streams = ((request, request.stream) for request in self.waiting)
        left = [request for request, stream in streams if not stream.is_open and stream.attempt == 0]
        tokens = sum(request.prompt_tokens for request in left) + prompt_tokens if most_tokens else 0
        displaced: list[Request] = []
        while len(left) + held + 1 > most or (left and tokens > most_tokens > 0):
            worst = least_urgent(left)
            if worst is None or urgency >= worst.urgency:
                message = f"{len(left) + held} requests are waiting already; the queue is full."
                raise RequestError(503, "queue_full", message, None, RETRY_AFTER_S)
            left.remove(worst)
            displaced.append(worst)
            tokens -= worst.prompt_tokens
        return displaced

    # Prefill passes

    def begin_pass(self, tree: RadixTree | None, running: Collection[Request], output_tokens: int, now: float) -> None:
        """Begin a pass; the policy looks at the tree, the running requests and the outputs so far as they are then."""
        number = self._context.pass_number + 1
        self._context = PolicyContext(self._config, tree, running, self.computed_tokens, number, output_tokens, now)

    def order(self, now: float) -> None:
        """Sort the queue by the policy, and by when first tokens are due, both within what tenants have left."""
        self._policy.order(self.waiting, self._context)
        self.first_tokens.order(self.waiting, self._admitting_passes, now)
        if self.tenants is not None and self._config.ttft_target_ms:
            self.tenants.put_behind(self.waiting)

    def note_admitted(self, request: Request, cached_tokens: int, now: float) -> None:
        """A request of this pass has entered the batch, with so many tokens from the tree."""
        if self.tenants is not None:
            self.tenants.on_admitted(request, cached_tokens, now)

    def end_pass(self, admitted: set[int], stop: tuple[str, Request] | None, now: float) -> None:
        """Take out the requests admitted, given by `id`; `stop` tells why the pass went no further, and where."""
        if stop is None:
            self.waits.switch(STEP, now)
        else:
            reason, first = stop
            self.stop_reasons[reason] += 1
            self.waits.on_stop(reason, first.timeline, now)
        if admitted:
            self._admitting_passes += 1
            self._take_out(admitted)
            if self.tenants is not None:
                self.tenants.end_pass()
        self.first_tokens.on_pass(self.computed_tokens, bool(self.waiting), now)

    def _take_out(self, admitted: set[int]) -> None:
        count, waiting = len(admitted), self.waiting
        # They are the first, unless a request on trial has gone before them.
        if all(id(request) in admitted for request in waiting[:count]):
            del waiting[:count]
        else:
            waiting[:] = [request for request in waiting if id(request) not in admitted]

    def passes_waited(self, request: Request) -> int:
        """Return how many passes have admitted others since a waiting request was queued."""
        return self._admitting_passes - request.passes_at_entry

    def note_computed(self, tokens: int) -> None:
        """Count prefill tokens that a step computes."""
        self.computed_tokens += tokens
