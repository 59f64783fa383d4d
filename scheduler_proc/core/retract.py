"""How a running request goes back to the queue: by shortage, by priority, or because it cannot ever go on.

What it gives back and what it keeps is the same in each case (rules RET-5 to RET-7, PRE-6).
"""

from scheduler_proc.core.request import Request, RequestState
from scheduler_proc.core.state import State


class Retraction:
    """Takes requests out of the batch. `state` is shared with the rest of the scheduler."""

    def __init__(self, state: State) -> None:
        self._state = state

    def retract(self, request: Request, shortage_tokens: int) -> None:
        """KV has run out: give everything back and queue again."""
        counters = self._state.counters
        counters.retractions += 1
        counters.retracted_input_tokens += request.prompt_tokens
        counters.retracted_output_tokens += len(request.output_ids)
        self._requeue(request, "retracted", {"shortage_tokens": shortage_tokens})

    def preempt(self, request: Request, newcomer: Request) -> None:
        """A more urgent request needs the place."""
        self._state.counters.preemptions += 1
        self._requeue(request, "preempted", {"by": newcomer.rid.hex()})

    def _requeue(self, request: Request, what: str, details: dict[str, object]) -> None:
        state = self._state
        request.timeline.retractions += 1
        details = {**details, "outputs": len(request.output_ids)}
        request.timeline.on_requeued(state.now, what, request.lease.num_computed_tokens, details)
        state.batch.leave(request, RequestState.WAITING)
        state.queue.add(request, state.now)

    def fail_alone(self, request: Request) -> None:
        """The last request does not fit even alone (RET-4): its output so far is final."""
        state = self._state
        message = "The KV cache is too small for this request even after retracting every other request."
        state.table.fail(request, 500, "out_of_memory", message, state.now)
