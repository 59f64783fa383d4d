"""The client of the engine without its sockets: live requests, the process table, replay. Sans-IO.

    generate ──► Encode ──► Encoded ──► journal ──► Submit ──► Accepted ──► Delta, Delta, ... (each id delivered once)

Owned by an api process (client.async_engine) or by the offline engine. It submits again what a dead process took with
it, and delivers each token once and in order. A request's Listener receives what becomes of it.
"""

from collections.abc import Iterable
from typing import Any

from quartet.client.adoption import Adopted
from quartet.client.deadlines import Deadlines
from quartet.client.encode_jobs import EncodeJobs
from quartet.client.journal import MAX_STALL_REPLAYS, Entry, Gap, Journal
from quartet.client.processes import Processes, exempt
from quartet.client.queries import Queries
from quartet.client.request import GenerateRequest, Listener, Output, submit_of, timed
from quartet.runtime.core import SUPERVISOR_NAME, Metrics, Sent
from quartet.wire.codec import Source
from quartet.wire.errors import FrameError, RequestError
from quartet.wire.frames import (
    Abort,
    Accepted,
    ApiInbound,
    Delta,
    DeltaItem,
    Drain,
    Encoded,
    EncodeFailed,
    Failed,
    HeldRequests,
    LiveRequests,
    ProcessTable,
    PromptDelta,
    QueryReply,
    Rejected,
    Snapshot,
    Submit,
    unpack_ids,
)
from quartet.wire.ids import Rid, Role, process_name

LIVE_REQUESTS_S = 1.0
EPOCH_SHIFT = 40  # Jobs and queries of one incarnation: 2^40 numbers.
SCHEDULER = process_name(Role.SCHEDULER, 0)


class ClientCore:
    """Live requests of one api process, and its view of the other processes.

    Args:
        name: the address that answers go to.
        tokenizers, detoks: how many processes of these roles there are.
        epoch: of the api process. Jobs and queries are numbered from it on, so that a late answer to a predecessor's
            is never taken for one's own.
    """

    inbound: Any = ApiInbound

    def __init__(self, name: str, tokenizers: int = 1, detoks: int = 1, epoch: int = 0) -> None:
        self._name = name
        self._detoks = detoks
        self._journal: Journal[Listener] = Journal()
        self._listeners: dict[Rid, Listener] = {}
        self.encodes = EncodeJobs(name, tokenizers, epoch << EPOCH_SHIFT, self._journal.quarantine)
        self._jobs: dict[int, int] = {}
        """The job of each request that is being tokenized, by the identity of its listener."""
        self.queries = Queries(name, epoch << EPOCH_SHIFT)
        self._deadlines = Deadlines()
        self._live_requests_due_s: float | None = None
        self._last_answer_s = float("-inf")
        self.processes = Processes()

    # Calls of the owner

    @property
    def live_count(self) -> int:
        """Live (rid, choice) pairs."""
        return len(self._journal.entries)

    def generate(self, request: GenerateRequest, listener: Listener, now: float) -> list[Sent]:
        """Begin a request: have its prompt tokenized, then submit every choice."""
        deadline_s = None if request.deadline_s is None else now + request.deadline_s

        def on_encoded(encoded: Encoded, encoded_s: float) -> list[Sent]:
            self._jobs.pop(id(listener), None)
            return self._submit(timed(request, now, encoded_s), listener, encoded, deadline_s, encoded_s)

        def on_error(error: RequestError) -> None:
            self._jobs.pop(id(listener), None)
            listener.on_error(error)

        self._deadlines.add(request, listener, now)
        self._jobs[id(listener)], sent = self.encodes.start(request, deadline_s, now, on_encoded, on_error)
        return sent

    def adopt(self, adopted: Adopted, listener: Listener, now: float) -> list[Sent]:
        """Go on with a request of this process's predecessor."""
        self._listeners[listener.rid] = listener
        self._deadlines.add(adopted.request, listener, adopted.start_s)
        return _submitted(adopted.enter(self._journal, listener, self._name, self._detoks, now))

    def abort(self, listener: Listener, now: float) -> list[Sent]:
        """Give a request up, whatever state it is in. Idempotent."""
        job = self._jobs.pop(id(listener), None)
        sent = [] if job is None else self.encodes.end(job)
        if self._listeners.get(listener.rid) is not listener:
            return sent
        del self._listeners[listener.rid]
        sent.append((SCHEDULER, Abort(listener.rid)))
        for choice in range(listener.num_choices):
            sent += _submitted(self._journal.remove(listener.rid, choice, now))
        return sent

    def choices_left(self, listener: Listener) -> int:
        """Return how many choices of a submitted request have not ended."""
        if self._listeners.get(listener.rid) is not listener:
            return 0
        return sum((listener.rid, choice) in self._journal.entries for choice in range(listener.num_choices))

    def fail_all(self, error: RequestError, now: float) -> list[Sent]:
        """End every request with an error, those that are being tokenized too."""
        self.encodes.fail_all(error)
        return [sent for entry in list(self._journal.entries.values()) for sent in self._give_up(entry, error, now)]

    # The face of a core

    def handle(self, source: Source, frame: Any, now: float) -> list[Sent]:
        """Take one frame; raises FrameError for one of an incarnation that has ended."""
        if self.processes.is_stale(source):
            raise FrameError("stale", f"{source}")
        match frame:
            case Delta():
                return self._on_delta(frame, now)
            case PromptDelta():
                return self._on_prompt_delta(frame, now)
            case Accepted():
                self._on_accepted(frame)
            case Encoded() | EncodeFailed():
                return self.encodes.take(frame, now)
            case Rejected() | Failed():
                retry_after_s = frame.retry_after_s if isinstance(frame, Rejected) else None
                error = RequestError(frame.status, frame.code, frame.message, None, retry_after_s)
                return self._on_failed(frame.rid, frame.choice, frame.attempt, error, now)
            case HeldRequests():
                return self._on_held_requests(frame, now)
            case QueryReply():
                self.queries.take(frame)
            case Snapshot():
                self.processes.snapshots[process_name(frame.role, frame.rank)] = frame
            case ProcessTable():
                return self._on_process_table(frame, now)
            case Drain():
                self.processes.is_stopping = True
        return []

    def tick(self, now: float) -> list[Sent]:
        """Send jobs again that wait too long; name the live requests each second: the reply shows what was lost."""
        sent = self.encodes.tick(now)
        for listener, error in self._deadlines.passed(now, self._journal, self._jobs):
            sent += self.abort(listener, now)
            listener.on_error(error)
        if self._live_requests_due_s is not None and self._live_requests_due_s <= now:
            self._live_requests_due_s = now + LIVE_REQUESTS_S
            sent.append((SCHEDULER, LiveRequests(self._name, self._journal.live_requests())))
        return sent

    def next_deadline(self) -> float | None:
        """Return when `tick` is wanted next."""
        deadlines = (self._live_requests_due_s, self.encodes.next_deadline(), self._deadlines.next())
        return min((due_s for due_s in deadlines if due_s is not None), default=None)

    def is_idle(self) -> bool:
        """Say whether no request is live or being tokenized."""
        return not self._listeners and not len(self.encodes)

    def metrics(self) -> Metrics:
        """Return the metrics of the journal."""
        return self._journal.metrics()

    # Processes

    def _on_process_table(self, table: ProcessTable, now: float) -> list[Sent]:
        """Take the process table: what a dead process held is sent again."""
        if self._live_requests_due_s is None:
            self._live_requests_due_s = now + LIVE_REQUESTS_S
        restarted = self.processes.update(table)
        if table.has_failed:
            message = "The engine has failed; the server is shutting down."
            return self.fail_all(RequestError(503, "engine_failed", message), now)
        if restarted:
            self._journal.pause(now)
        sent = [one for process in restarted for one in self.encodes.on_restart(process, now)]
        again, at_fault = self._journal.on_deaths(restarted, now)
        for entry, error in at_fault:
            sent += self._give_up(entry, error, now)
        sent += [(SUPERVISOR_NAME, exempt(process)) for process in restarted if at_fault]
        return sent + _submitted(self._journal.send(again, now))

    # Requests

    def _submit(
        self, request: GenerateRequest, listener: Listener, encoded: Encoded, deadline_s: float | None, now: float
    ) -> list[Sent]:
        """Journal and submit every choice of a request, unless its owner has given it up."""
        if listener.is_settled:
            return []
        try:
            if listener.rid in self._listeners:
                raise RequestError(400, "invalid_value", "A request with this id is in progress.", "request_id")
            self._journal.quarantine.check(encoded.ids, encoded.params, now)
            submits = [submit_of(request, listener.rid, k, encoded, self._name, self._detoks) for k in range(request.n)]
        except RequestError as error:
            listener.on_error(error)
            return []
        listener.on_encoded(encoded)
        self._listeners[listener.rid] = listener
        return _submitted(one for submit in submits for one in self._journal.add(submit, listener, deadline_s, now))

    def _on_accepted(self, frame: Accepted) -> None:
        entry = self._journal.current(frame.rid, frame.choice, frame.attempt)
        if entry is not None:
            entry.is_accepted = True
            entry.owner.on_accepted(frame.choice, frame.max_new_tokens)

    def _on_delta(self, delta: Delta, now: float) -> list[Sent]:
        sent: list[Sent] = []
        take, has_trials = self._journal.take, self._journal.trials.are_open
        for item in delta.items:
            try:
                taken = take(item, now)
            except Gap:
                sent += self._on_gap(self._journal.entries[item.rid, item.choice], now)
                continue
            if taken is not None:
                entry, item = taken
                if not entry.is_accepted:
                    # Output implies acceptance; the Accepted frame itself was lost, or comes last.
                    entry.is_accepted = True
                    entry.owner.on_accepted(item.choice, entry.submit.params.max_new_tokens or 0)
                if item.finish is not None:
                    sent += self._on_finish(item, entry.owner, now)
                elif has_trials:
                    sent += _submitted(self._journal.note_progress(entry, now))
                output = Output(item.choice, unpack_ids(item.ids), item.text, item.logprobs, item.finish)
                entry.owner.on_outputs([output])
        return sent

    def _on_prompt_delta(self, part: PromptDelta, now: float) -> list[Sent]:
        try:
            taken = self._journal.take_prompt(part, now)
        except Gap:
            return self._on_gap(self._journal.entries[part.rid, part.choice], now)
        if taken is not None:
            taken[0].owner.on_outputs([Output(part.choice, [], "", taken[1], None)])
        return []

    def _on_gap(self, entry: Entry[Listener], now: float) -> list[Sent]:
        """Output is missing or contradicts what was delivered: submit again, a few times without progress at most."""
        entry.stall_replays += 1
        if entry.stall_replays <= MAX_STALL_REPLAYS:
            return [(SCHEDULER, self._journal.replay(entry, now))]
        return self._give_up(entry, RequestError(500, "internal_error", "The output cannot be continued."), now)

    def _on_finish(self, item: DeltaItem, listener: Listener, now: float) -> list[Sent]:
        submits = self._journal.remove(item.rid, item.choice, now)
        if not self.choices_left(listener):
            self._listeners.pop(item.rid, None)
        return _submitted(submits)

    def _on_failed(self, rid: Rid, choice: int, attempt: int, error: RequestError, now: float) -> list[Sent]:
        entry = self._journal.current(rid, choice, attempt)
        return [] if entry is None else self._give_up(entry, error, now)

    def _give_up(self, entry: Entry[Listener], error: RequestError, now: float) -> list[Sent]:
        """End the request of an entry with an error, once for all its choices."""
        if entry.submit.rid not in self._listeners:
            return []
        sent = self.abort(entry.owner, now)
        entry.owner.on_error(error)
        return sent

    def _on_held_requests(self, held: HeldRequests, now: float) -> list[Sent]:
        if not self.processes.is_complete:
            self._journal.pause(now)
            return []
        if now - self._last_answer_s < LIVE_REQUESTS_S / 2:
            # A scheduler that was paused answers old questions in a burst, which counts as one.
            return []
        self._last_answer_s = now
        again, hopeless = self._journal.lost(held.held, held.is_step_in_flight, now)
        sent: list[Sent] = [(SCHEDULER, self._journal.replay(entry, now)) for entry in again]
        for entry in hopeless:
            sent += self._give_up(entry, RequestError(500, "internal_error", "The request stalled repeatedly."), now)
        return sent


def _submitted(submits: Iterable[Submit]) -> list[Sent]:
    return [(SCHEDULER, submit) for submit in submits]
