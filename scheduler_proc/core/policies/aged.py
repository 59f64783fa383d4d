"""Credit for waiting, added to an order of matched requests that would starve some."""

from scheduler_proc.core.policies.context import Arrange, PolicyContext
from scheduler_proc.core.request import Request, RequestState

TOKENS_OF_AN_OUTPUT = 4
"""What decoding a token counts for beside computing one of a prompt: decode steps read all weights for few tokens."""


class Aged:
    """lpm-aging, session: another order, but a share of the engine's work goes to the oldest requests.

    Work is counted in prompt tokens; an output counts for TOKENS_OF_AN_OUTPUT. The allowance grows by `aging_share` of
    the work done. The oldest requests go first, one after the other, as far as it covers what of them is not cached;
    they use it up when they are admitted.

    So a request is overtaken for at most U / aging_share of work, where U are the uncached tokens of itself and of
    those that waited when it came, whatever arrives later: the allowance is not lost to later ones, and once it
    covers the oldest nothing passes that. The work for what goes first out of turn stays below that share.

    Args:
        arrange: the order of the others, of requests that have been matched.
    """

    def __init__(self, arrange: Arrange) -> None:
        self._arrange = arrange
        self._allowance = 0.0
        self._work = 0
        self._ahead: list[tuple[Request, tuple[int, int], int]] = []
        """The requests of the last pass that went first: each with its entry and its uncached tokens."""

    def __call__(self, requests: list[Request], context: PolicyContext) -> None:
        """Sort in place requests of which the first is among the most urgent."""
        self._arrange(requests, context)
        oldest = sorted((one for one in requests if one.urgency == requests[0].urgency), key=lambda one: one.seq)
        self._settle(context, max(map(_uncached, oldest), default=0))
        self._ahead = []
        left = self._allowance
        for request in oldest:
            uncached = _uncached(request)
            if uncached > left:
                break
            left -= uncached
            self._ahead.append((request, _entry(request), uncached))
        ahead = {id(request) for request, _, _ in self._ahead}
        first = [request for request, _, _ in self._ahead]
        requests[:] = first + [request for request in requests if id(request) not in ahead]
        for request in first:
            request.is_deprioritized = False

    def _settle(self, context: PolicyContext, most: int) -> None:
        """Count the work done since the last pass, and what of it went to requests out of turn.

        More than `most`, what one request may need, is not kept: then the oldest go first anyway.
        """
        work = context.processed_tokens + TOKENS_OF_AN_OUTPUT * context.output_tokens
        self._allowance += context.config.aging_share * (work - self._work)
        self._work = work
        for request, entry, uncached in self._ahead:
            if request.state is not RequestState.WAITING or _entry(request) != entry:
                self._allowance -= uncached
        self._allowance = min(self._allowance, float(most))


def _entry(request: Request) -> tuple[int, int]:
    """Return what tells one stay in the queue from another; a retracted request may keep its number (RET-18)."""
    return request.qseq, request.timeline.retractions


def _uncached(request: Request) -> int:
    return request.total_tokens - request.matched_tokens
