"""What the edge says: requests arrive, are replaced by a later attempt, are dropped (LEN, PRI-4, faults R4, R6)."""

import msgspec

from quartet.wire.errors import RequestError
from quartet.wire.frames import HeldRequest, HeldRequests, LiveRequests, Rejected, Submit, unpack_ids
from quartet.wire.ids import Rid
from scheduler_proc.core.lengths import LengthRules
from scheduler_proc.core.priority import urgency_of
from scheduler_proc.core.queue import RETRY_AFTER_S
from scheduler_proc.core.request import Request, RequestState
from scheduler_proc.core.state import State

MISSES_BEFORE_ABORT = 2


class Intake:
    """Takes what the edge sends. `state` is shared with the rest of the scheduler.

    Before a worker has come up nothing is known of the pool: submits are kept in order and taken then.
    """

    def __init__(self, state: State) -> None:
        self._state = state
        self._early: list[Submit] = []

    def on_submit(self, submit: Submit) -> None:
        """Queue a request, rebind it to a later attempt, or refuse it."""
        if self._state.lengths is None:
            self._early.append(submit)
            return
        present = self._state.table.find(submit.rid, submit.choice)
        if present is not None:
            if submit.attempt <= present.stream.attempt:
                return
            if self._rebind(present, submit):
                return
            self._state.table.replace(present, self._state.now)
        try:
            self._queue(submit, self._state.lengths)
        except RequestError as error:
            self._state.table.note_refusal(error.code)
            self._state.delivery.put(
                submit.reply_to,
                Rejected(
                    submit.rid,
                    submit.choice,
                    submit.attempt,
                    error.status,
                    error.code,
                    error.message,
                    error.retry_after_s,
                ),
            )

    def on_worker_up(self) -> None:
        """The pool is known: take what came before."""
        early, self._early = self._early, []
        for submit in early:
            self.on_submit(submit)

    def _queue(self, submit: Submit, lengths: LengthRules) -> None:
        state = self._state
        prompt_tokens = len(submit.prompt_ids) // 4
        if (
            submit.priority is not None
            and state.config.abort_on_priority_when_disabled
            and not state.config.enable_priority_scheduling
        ):
            raise RequestError(503, "priority_disabled", "This server does not take priorities.", "priority")
        urgency = urgency_of(submit.priority, state.config)
        if state.config.allow_auto_truncate and prompt_tokens > lengths.longest_prompt():
            prompt_tokens = lengths.longest_prompt()
            submit = _truncated(submit, prompt_tokens)
        lengths.check_prompt(prompt_tokens)
        if submit.attempt == 0:
            if state.is_draining:
                raise RequestError(503, "draining", "The server is shutting down.", None, RETRY_AFTER_S)
            state.table.make_place(urgency, state.now)
        max_new_tokens = lengths.clamp_max_new_tokens(submit.params.max_new_tokens, prompt_tokens)
        request = Request(submit, max_new_tokens, state.eos_token_ids, state.table.next_seq(), 0, state.now)
        request.urgency = urgency
        deadline_s = None if submit.deadline_s is None else state.now + submit.deadline_s
        state.table.add(request, deadline_s, state.now)
        state.delivery.accept(request)
        reason = request.end_reason() if request.output_ids else None
        if reason is not None:
            # A replay whose output is complete: only its end was lost (faults R14).
            state.delivery.open(request, state.now)
            state.table.finish(request, reason, state.now)
            state.delivery.flush_tokens()

    def _rebind(self, request: Request, submit: Submit) -> bool:
        """Give a request that is still held its new attempt and address, without computing anything again.

        False if what the edge has is not a prefix of what we have.
        """
        delivered = unpack_ids(submit.output_ids)
        if request.output_ids[: len(delivered)] != delivered:
            return False
        delivery = self._state.delivery
        delivery.rebind(request, submit)
        delivery.accept(request)
        if request.timeline.started_s >= 0 or request.output_ids:
            delivery.open(request, self._state.now)
        return True

    def on_abort(self, rid: Rid) -> None:
        """Drop every choice of a request; unknown ones are gone already."""
        self._early = [submit for submit in self._early if submit.rid != rid]
        for request in self._state.table.choices(rid):
            self._state.table.abort(request, self._state.now)

    def on_live_requests(self, live: LiveRequests) -> None:
        """Free what the edge has not named twice in a row, and say what is held for it (faults R6, R8)."""
        state = self._state
        wanted = {(key.rid, key.choice) for key in live.live}
        held = []
        for request in state.table.live():
            if request.stream.reply_to != live.reply_to:
                continue
            if (request.rid, request.choice) in wanted:
                request.stream.live_misses = 0
            else:
                request.stream.live_misses += 1
                if request.stream.live_misses >= MISSES_BEFORE_ABORT:
                    self._state.table.abort(request, self._state.now)
                    continue
            is_running = request.state is not RequestState.WAITING
            steps = state.in_flight.last_step - request.timeline.first_step if is_running else 0
            held.append(HeldRequest(request.rid, request.choice, request.stream.attempt, is_running, steps))
        for submit in self._early:
            if submit.reply_to == live.reply_to:
                held.append(HeldRequest(submit.rid, submit.choice, submit.attempt, False, 0))
        state.delivery.put(live.reply_to, HeldRequests(held))


def _truncated(submit: Submit, prompt_tokens: int) -> Submit:
    return msgspec.structs.replace(submit, prompt_ids=submit.prompt_ids[: prompt_tokens * 4])
