"""What the API processes send: requests arrive, are replayed, are dropped (LEN, PRI-4, faults R4, R6)."""

import math
from collections.abc import Set

import msgspec

from quartet.wire.config import SchedulerConfig
from quartet.wire.errors import RequestError
from quartet.wire.frames import (
    ID_BYTES,
    CompileGrammar,
    GrammarCompiled,
    HeldRequest,
    HeldRequests,
    LiveRequests,
    Query,
    Rejected,
    Submit,
    unpack_ids,
)
from quartet.wire.ids import Rid
from quartet.wire.urgency import urgency_of
from scheduler_proc.core.delivery import Delivery
from scheduler_proc.core.grammars import GrammarQueue, HeldSubmit, compile_error, crash_error
from scheduler_proc.core.in_flight import StepsInFlight
from scheduler_proc.core.lengths import LengthRules
from scheduler_proc.core.meters import NO_WORKER
from scheduler_proc.core.naming import RequestName
from scheduler_proc.core.queue import RETRY_AFTER_S
from scheduler_proc.core.request import Request, RequestState
from scheduler_proc.core.request_table import RequestTable
from scheduler_proc.core.suspects import Suspects

MISSES_BEFORE_ABORT = 2
EXPIRED = RequestError(408, "deadline_exceeded", "The request's deadline has passed.")


class Intake:
    """Turns Submits into requests.

    Before a worker has come up the size of the pool is unknown: Submits are kept in order and taken then. One whose
    grammar is not compiled is kept until it is.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        eos_token_ids: tuple[int, ...],
        table: RequestTable,
        delivery: Delivery,
        suspects: Suspects,
        grammars: GrammarQueue,
        worker_name: str,
    ) -> None:
        self._suspects = suspects
        self._grammars = grammars
        self._worker_name = worker_name
        self.lengths: LengthRules | None = None
        self._config = config
        self._eos_token_ids = eos_token_ids
        self._table = table
        self._delivery = delivery
        self._early: list[tuple[Submit, float]] = []
        self._is_draining = False

    def begin_drain(self) -> None:
        """Refuse new requests from this time on; later attempts of known ones are taken."""
        self._is_draining = True

    def on_worker_up(self, lengths: LengthRules, now: float) -> None:
        """The pool is known: take what came before."""
        self.lengths = lengths
        live = (request.params.grammar for request in self._table.live())
        self._ask(self._grammars.on_worker_up((grammar.source for grammar in live if grammar is not None), now))
        early, self._early = self._early, []
        for submit, since_s in early:
            self.on_submit(submit, now, since_s)

    def on_worker_lost(self, was_killed: bool | None, now: float) -> None:
        """Refuse what has ended the workers that compiled its grammar; the rest is compiled by the next one."""
        for held in self._grammars.on_worker_lost(was_killed is False):
            self._refuse(held.submit, crash_error())

    def on_compiled(self, compiled: GrammarCompiled, now: float) -> None:
        """Queue or refuse the requests that have waited for a grammar."""
        assert self.lengths is not None
        for held in self._grammars.take_compiled(compiled):
            if compiled.error:
                self._refuse(held.submit, compile_error(compiled.error))
            else:
                self._enter(held.submit, self.lengths, held.since_s, now)

    def on_tick(self, now: float) -> None:
        """Fail what has run out of time, and ask again for grammars without an answer."""
        self._table.fail_expired(now)
        for held in self._grammars.take_expired(now):
            self._refuse(held.submit, EXPIRED)
        self._ask(self._grammars.ask_again(now))

    def next_deadline(self) -> float | None:
        """Return when `on_tick` has something to do."""
        due = self._table.next_deadline(), self._grammars.next_deadline()
        return min((due_s for due_s in due if due_s is not None), default=None)

    def _ask(self, frames: list[CompileGrammar]) -> None:
        for frame in frames:
            self._delivery.put(self._worker_name, frame)

    def on_submit(self, submit: Submit, now: float, since_s: float | None = None) -> None:
        """Queue a request, which has been here since `since_s`, rebind it to a later attempt, or refuse it."""
        if self.lengths is None:
            self._early.append((submit, now))
            return
        present = self._table.find(submit.rid, submit.choice)
        if present is not None:
            if submit.attempt <= present.stream.attempt or self._rebind(present, submit, now):
                return
            self._table.replace(present, now)
        held = self._grammars.find(submit.rid, submit.choice) if len(self._grammars) else None
        if held is not None:
            if submit.attempt <= held.submit.attempt:
                return
            self._grammars.take(lambda one: one is held)
        try:
            submit = self._checked(submit, self.lengths, now)
        except RequestError as error:
            self._refuse(submit, error)
            return
        if self._grammars.must_wait(submit):
            self._hold(submit, now)
        else:
            self._enter(submit, self.lengths, now if since_s is None else since_s, now)

    def _refuse(self, submit: Submit, error: RequestError) -> None:
        self._table.note_refusal(error.code)
        frame = Rejected(
            submit.rid,
            submit.choice,
            submit.attempt,
            error.status,
            error.code,
            error.message,
            error.retry_after_s,
        )
        self._delivery.put(submit.reply_to, frame)

    def _checked(self, submit: Submit, lengths: LengthRules, now: float) -> Submit:
        """Return a request as it is to be queued, for which there is a place; raises RequestError if it cannot be."""
        config = self._config
        has_unwanted_priority = submit.priority is not None and not config.enable_priority_scheduling
        if has_unwanted_priority and config.abort_on_priority_when_disabled:
            raise RequestError(503, "priority_disabled", "This server does not take priorities.", "priority")
        prompt_tokens = len(submit.prompt_ids) // ID_BYTES
        if config.allow_auto_truncate and prompt_tokens > lengths.longest_prompt():
            prompt_tokens = lengths.longest_prompt()
            submit = msgspec.structs.replace(submit, prompt_ids=submit.prompt_ids[: prompt_tokens * ID_BYTES])
        lengths.check_prompt(prompt_tokens)
        if submit.attempt == 0:
            if self._is_draining:
                raise RequestError(503, "draining", "The server is shutting down.", None, RETRY_AFTER_S)
            self._suspects.quarantine.check(submit.prompt_ids, submit.params, now)
            urgency = urgency_of(submit.priority, config)
            self._table.make_place(urgency, prompt_tokens, len(self._grammars), now)
            self._table.check_first_token(prompt_tokens, submit.accepted_s, urgency, now)
        return submit

    def _hold(self, submit: Submit, now: float) -> None:
        """Keep a request until the worker has compiled its grammar."""
        waiting_s = self._config.req_waiting_timeout
        limit_s = now + (waiting_s if waiting_s > 0 else math.inf)
        if submit.deadline_s is not None:
            limit_s = min(limit_s, now + submit.deadline_s)
        frame = self._grammars.hold(submit, limit_s, now)
        self._ask([] if frame is None else [frame])

    def _enter(self, submit: Submit, lengths: LengthRules, arrived_s: float, now: float) -> None:
        """Queue a request."""
        prompt_tokens = len(submit.prompt_ids) // ID_BYTES
        max_new_tokens = lengths.clamp_max_new_tokens(submit.params.max_new_tokens, prompt_tokens)
        request = Request(submit, max_new_tokens, self._eos_token_ids, self._table.next_seq(), 0, arrived_s)
        held_for = NO_WORKER if submit.params.grammar is None else "grammar"
        request.timeline.on_arrived(submit.tokenizing_s, submit.attempt > 0, held_for, now)
        request.urgency = urgency_of(submit.priority, self._config)
        self._table.add(request, None if submit.deadline_s is None else arrived_s + submit.deadline_s, now)
        self._delivery.accept(request)
        reason = request.end_reason() if request.output_ids else None
        if reason is not None:
            # A replay whose output is complete: only its end was lost (faults R14).
            self._delivery.open(request, now)
            self._table.finish(request, reason, now)
            self._delivery.flush_tokens()

    def _rebind(self, request: Request, submit: Submit, now: float) -> bool:
        """Give a live request its new attempt and addresses, without computing anything again.

        False if the outputs that were delivered are not a beginning of those computed, or are fewer than were before.
        """
        delivered, scores = unpack_ids(submit.output_ids), request.prompt_scores
        is_behind = len(delivered) < request.stream.released_count
        if submit.params.prompt_logprobs >= 0:
            # The client says that it has not got what it has said to have, or what was never wanted.
            is_behind |= scores is None or scores.is_released
        if is_behind or request.output_ids[: len(delivered)] != delivered:
            return False
        self._delivery.rebind(request, submit)
        self._delivery.accept(request)
        if request.timeline.started_s >= 0 or request.output_ids:
            self._delivery.open(request, now)
        return True

    def on_abort(self, rid: Rid, now: float) -> None:
        """Drop every choice of a request; unknown ones are gone already."""
        self._early = [one for one in self._early if one[0].rid != rid]
        self._grammars.take(lambda held: held.submit.rid == rid)
        for request in self._table.choices(rid):
            self._table.abort(request, now)

    def cancel(self, query: Query, now: float) -> int:
        """End the requests that a query names with an error; return how many choices there were."""
        name = RequestName(query.argument, query.tenant)
        early, self._early = self._early, []
        error = RequestError(499, "request_aborted", "The request was aborted by POST /abort_request.")
        held = self._grammars.take(lambda held: name.fits(held.submit.rid, held.submit.tenant, held.submit.request_id))
        for submit, since_s in [*early, *((one.submit, one.since_s) for one in held)]:
            if name.fits(submit.rid, submit.tenant, submit.request_id):
                self._refuse(submit, error)
            else:
                self._early.append((submit, since_s))
        live = self._table.named(name)
        for request in live:
            self._table.fail(request, error.status, error.code, error.message, now)
        return len(early) - len(self._early) + len(held) + len(live)

    def on_live_requests(self, live: LiveRequests, in_flight: StepsInFlight, now: float) -> None:
        """Free what the API process has not named twice in a row, and report what is held for it (faults R6, R8)."""
        delivered = {(key.rid, key.choice): key.delivered_count for key in live.live}
        held = []
        for request in self._table.live():
            stream = request.stream
            if stream.reply_to != live.reply_to:
                continue
            delivered_count = delivered.get((request.rid, request.choice))
            if stream.note_live(delivered_count is not None) >= MISSES_BEFORE_ABORT:
                self._table.abort(request, now)
                continue
            if delivered_count is not None:
                stream.release_logprobs(delivered_count, len(request.output_ids))
                if delivered_count and request.prompt_scores is not None:
                    # They go ahead of the first output.
                    request.prompt_scores.release()
            is_running = request.state is not RequestState.WAITING
            steps = in_flight.last_step - request.timeline.first_step if is_running else 0
            held.append(HeldRequest(request.rid, request.choice, stream.attempt, is_running, steps))
        early = [submit for submit, _ in self._early]
        for submit in [*early, *self._still_wanted(live, delivered.keys())]:
            if submit.reply_to == live.reply_to:
                held.append(HeldRequest(submit.rid, submit.choice, submit.attempt, False, 0))
        self._delivery.put(live.reply_to, HeldRequests(held, in_flight.oldest is not None))

    def _still_wanted(self, live: LiveRequests, named: Set[tuple[Rid, int]]) -> list[Submit]:
        """Return what waits for its grammar; forget what the API process has not named twice in a row."""

        def is_unwanted(held: HeldSubmit) -> bool:
            submit = held.submit
            if submit.reply_to == live.reply_to:
                held.misses = 0 if (submit.rid, submit.choice) in named else held.misses + 1
            return held.misses >= MISSES_BEFORE_ABORT

        self._grammars.take(is_unwanted)
        return self._grammars.submits()
