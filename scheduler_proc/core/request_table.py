"""Every live request by its name, the last that have ended, and the ways in which one ends."""

import collections

from quartet.wire.config import SchedulerConfig
from quartet.wire.ids import Rid
from scheduler_proc.core.batch import Batch
from scheduler_proc.core.deadlines import Deadlines
from scheduler_proc.core.delivery import Delivery
from scheduler_proc.core.first_tokens import too_late
from scheduler_proc.core.history import History
from scheduler_proc.core.naming import RequestName
from scheduler_proc.core.observed import ObservedLengths
from scheduler_proc.core.queue import WaitingQueue
from scheduler_proc.core.request import Request, RequestState
from scheduler_proc.core.sessions import Sessions

FINISHED_KEPT = 1000
ENDED_BY_THEMSELVES = ("stop", "length", "stop_string")


class RequestTable:
    """A live request is in exactly one place, the queue or the batch (INV-7); one that ends leaves place and table.

    `sessions` are told which requests begin and end. `ended` tells of the last requests that ended. `ends_by_cause`
    counts ends, and refusals by their code.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        queue: WaitingQueue,
        batch: Batch,
        delivery: Delivery,
        lengths: ObservedLengths,
        sessions: Sessions,
    ) -> None:
        self.ended = History()
        self.ends_by_cause: collections.Counter[str] = collections.Counter()
        self.finished_count = 0
        self._queue = queue
        self._batch = batch
        self._delivery = delivery
        self._lengths = lengths
        self.sessions = sessions
        self._deadlines = Deadlines(config)
        self._by_rid: dict[Rid, dict[int, Request]] = {}
        self._finished_log: collections.deque[Request] | None = None
        self._last_seq = 0

    @property
    def is_empty(self) -> bool:
        """Say whether no request is live."""
        return not self._by_rid

    # Live requests

    def next_seq(self) -> int:
        """Return a new arrival number."""
        self._last_seq += 1
        return self._last_seq

    def add(self, request: Request, deadline_s: float | None, now: float) -> None:
        """Queue a new request."""
        self._by_rid.setdefault(request.rid, {})[request.choice] = request
        self.sessions.on_arrival(request, now)
        self._queue.add(request, now)
        if deadline_s is not None:
            self._deadlines.add(request, deadline_s)

    def make_place(self, urgency: int, prompt_tokens: int, held: int, now: float) -> None:
        """Let less urgent requests leave a full queue for a new one; raises RequestError if there are none (PRI-4).

        `held` is how many are going to be queued."""
        for displaced in self._queue.displaced_by(urgency, prompt_tokens, held):
            message = "Displaced from the full queue by a higher priority request."
            self.fail(displaced, 503, "queue_full", message, now)

    def check_first_token(self, prompt_tokens: int, accepted_s: float | None, urgency: int, now: float) -> None:
        """Raise RequestError for a request whose first token would come too late, if such ones are shed (PRI-5)."""
        ahead = (one for one in self._queue.waiting if one.urgency <= urgency)
        accepted_s = now if accepted_s is None or not 0 <= accepted_s <= now else accepted_s
        self._queue.first_tokens.check(prompt_tokens, accepted_s, ahead, now)

    def find(self, rid: Rid, choice: int) -> Request | None:
        """Return a live request."""
        return self._by_rid.get(rid, {}).get(choice)

    def choices(self, rid: Rid) -> list[Request]:
        """Return the live choices of a request."""
        return list(self._by_rid.get(rid, {}).values())

    def live(self) -> list[Request]:
        """Return every live request."""
        return [request for choices in self._by_rid.values() for request in choices.values()]

    def named(self, name: RequestName) -> list[Request]:
        """Return the live requests that a client names."""
        return [one for one in self.live() if name.fits(one.rid, one.namespace[0], one.request_id)]

    def take_finished(self) -> list[Request]:
        """Return the requests that ended by themselves since the last call; none before the first call is kept."""
        if self._finished_log is None:
            self._finished_log = collections.deque(maxlen=FINISHED_KEPT)
        finished = list(self._finished_log)
        self._finished_log.clear()
        return finished

    def note_first_token(self, request: Request, now: float) -> None:
        """A request has its first token."""
        self._queue.first_tokens.on_first_token(request, now)

    def note_refusal(self, code: str) -> None:
        """Count a request that never became live."""
        self.ends_by_cause[code] += 1

    # Time

    def fail_expired(self, now: float) -> None:
        """Fail what has passed its deadline, or has waited or run too long (6.5)."""
        for request in self._deadlines.take_passed(now):
            self.fail(request, 408, "deadline_exceeded", "The request's deadline has passed.", now)
        for request in self._queue.first_tokens.missed(self._queue.waiting, now):
            error = too_late(now - request.timeline.accepted_s)
            self.fail(request, error.status, error.code, error.message, now)
        for request in self._deadlines.timed_out(self.live, now):
            self.fail(request, 408, "deadline_exceeded", "The request has waited or run for too long.", now)

    def next_deadline(self) -> float | None:
        """Return when `fail_expired` has something to do."""
        due = self._deadlines.next(self.live), self._queue.first_tokens.next_s(self._queue.waiting)
        return min((due_s for due_s in due if due_s is not None), default=None)

    # Ends

    def finish(self, request: Request, reason: str, now: float) -> None:
        """End a request whose output is complete, wherever it is."""
        outputs = request.output_ids
        is_stop = reason == "stop"
        matched = outputs[-1] if is_stop and outputs[-1] in request.params.stop_token_ids else None
        self._delivery.end(request, reason, matched, int(is_stop), now)
        self._end(request, RequestState.FINISHED, reason, now)

    def finish_cut(self, request: Request, count: int, now: float) -> None:
        """End a request that the detokenizer has cut at a stop string, after `count` outputs."""
        del request.output_ids[count:]
        self._delivery.close(request)
        self._end(request, RequestState.FINISHED, "stop_string", now)

    def replace(self, request: Request, now: float) -> None:
        """Drop a request that a later attempt contradicts, without a word; what it computed stays cached."""
        self._delivery.close(request)
        self._end(request, RequestState.FINISHED, "replaced", now)

    def abort(self, request: Request, now: float) -> None:
        """Drop a request that is no longer wanted."""
        self._delivery.close(request)
        self._end(request, RequestState.ABORTED, "aborted", now)

    def fail(self, request: Request, status: int, code: str, message: str, now: float) -> None:
        """End a request that cannot go on; its output so far is final."""
        self._delivery.send_held_back(request)
        self._delivery.close(request)
        self._end(request, RequestState.FAILED, code, now)
        self._delivery.fail(request, status, code, message)

    def _end(self, request: Request, state: RequestState, cause: str, now: float) -> None:
        if request.state is RequestState.WAITING:
            self._queue.remove(request)
            request.move_to(state)
        else:
            self._batch.leave(request, state)
            self._queue.on_left_batch(request, now)
        self.sessions.on_end(request, state is RequestState.FINISHED, now)
        choices = self._by_rid[request.rid]
        del choices[request.choice]
        if not choices:
            del self._by_rid[request.rid]
        self.finished_count += state is RequestState.FINISHED
        self.ends_by_cause[cause] += 1
        request.timeline.on_ended(now, cause, len(request.output_ids))
        self.ended.add(request, now)
        self._deadlines.remove(request)
        request.stream.logprobs.clear()
        if request.prompt_scores is not None:
            request.prompt_scores.release()
        if cause in ENDED_BY_THEMSELVES:
            self._lengths.note(request.namespace[0], len(request.output_ids))
            if self._finished_log is not None:
                self._finished_log.append(request)
