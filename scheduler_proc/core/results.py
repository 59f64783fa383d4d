"""What a step's result does: tokens appended, requests finished, failed steps undone (rules STEP-10 to STEP-12)."""

from quartet.wire.frames import StepFailed, StepResult, Stopped, TokenLogprobs, unpack_ids
from scheduler_proc.core.request import Request, RequestState
from scheduler_proc.core.state import State

MAX_SUSPICION = 3


class Results:
    """Takes what the worker and the detokenizer report. `state` is shared with the rest of the scheduler."""

    def __init__(self, state: State) -> None:
        self._state = state

    def on_result(self, result: StepResult) -> None:
        """Apply one step's sampled ids, in row order."""
        state = self._state
        if not state.in_flight.take(result.step, state.now):
            return
        logprobs = dict(result.logprobs)
        bad_rows = set(result.bad_rows)
        is_plain = not logprobs and not bad_rows and state.config.stream_interval == 1
        by_generation, delivery = state.in_flight.by_generation, state.delivery
        detok, columns, taken = "", delivery.columns(""), 0
        generations, ids = unpack_ids(result.generations), unpack_ids(result.ids)
        # The hot loop: what almost every row needs stands here, the rest in _take_row.
        for row, (generation, token_id) in enumerate(zip(generations, ids, strict=True)):
            request = by_generation.get(generation)
            if request is None:
                continue
            request.in_flight -= 1
            if request.slot < 0 and not request.in_flight:
                del by_generation[generation]
            stream = request.stream
            if not is_plain or request.is_done or stream.first_token_s < 0 or request.suspicion:
                self._take_row(request, token_id, row in bad_rows, logprobs.get(row))
                continue
            outputs = request.output_ids
            index = len(outputs)
            outputs.append(token_id)
            taken += 1
            if stream.detok != detok:
                detok = stream.detok
                columns = delivery.columns(detok)
            columns.handles.append(stream.handle)
            columns.indices.append(index)
            columns.ids.append(token_id)
            if token_id in request.stop_ids or index + 1 >= request.max_new_tokens:
                stream.sent_count = index + 1
                self._end_if_complete(request)
        state.counters.output_tokens += taken
        delivery.flush_tokens(result.step)

    def _take_row(self, request: Request, token_id: int, is_bad: bool, logprobs: TokenLogprobs | None) -> None:
        """Take a row that is not plain: surplus, not finite, first, with log-probabilities, or sent at intervals."""
        state = self._state
        if request.is_done:
            state.counters.wasted_rows += 1
        elif is_bad:
            self._fail(request, "model_output_invalid", "The model produced numbers that are not finite.")
        elif request.max_new_tokens == 0:
            self.finish(request, "length")
        else:
            request.output_ids.append(token_id)
            state.counters.output_tokens += 1
            request.suspicion = 0
            if request.stream.first_token_s < 0:
                request.stream.first_token_s = state.now
                request.timeline.note(state.now, "first_token", {})
            state.delivery.take_output(request, logprobs)
            self._end_if_complete(request)

    def _end_if_complete(self, request: Request) -> None:
        reason = request.end_reason()
        if reason is not None:
            self.finish(request, reason)

    def finish(self, request: Request, reason: str) -> None:
        """End a request normally, from whatever place it is in, and tell its detokenizer."""
        outputs = request.output_ids
        is_stop = reason == "stop"
        matched = outputs[-1] if is_stop and outputs[-1] in request.params.stop_token_ids else None
        hidden = 1 if is_stop else 0
        self._state.delivery.end(request, reason, matched, hidden, self._state.now)
        self._leave(request, RequestState.FINISHED, reason)

    def _leave(self, request: Request, end: RequestState, cause: str) -> None:
        """Take a request out of queue or batch; its KV goes to the tree if it finished, else back to the pool."""
        state = self._state
        if request.state is RequestState.WAITING:
            state.queue.remove(request)
            request.move_to(end)
        else:
            state.batch.leave(request, end)
        if end is RequestState.FINISHED:
            state.counters.finished += 1
        state.end(request, cause)

    def abort(self, request: Request) -> None:
        """Drop a request that nobody wants any more."""
        self._state.delivery.close(request)
        self._leave(request, RequestState.ABORTED, "aborted")

    def leave_for_replay(self, request: Request) -> None:
        """Let go of a request without a word; what it computed goes into the tree."""
        self._state.delivery.close(request)
        self._leave(request, RequestState.FINISHED, "replaced")

    def fail(self, request: Request, status: int, code: str, message: str) -> None:
        """End a request that cannot go on; its output so far is final."""
        self._state.delivery.send_held_back(request)
        self._state.delivery.close(request)
        self._leave(request, RequestState.FAILED, code)
        self._state.delivery.fail(request, status, code, message)

    def _fail(self, request: Request, code: str, message: str) -> None:
        self.fail(request, 500, code, message)

    def on_stopped(self, stopped: Stopped) -> None:
        """A stop string ended a request after `count` tokens: drop the surplus and finish it silently.

        The detokenizer has sent the end already.
        """
        request = self._state.requests.get(stopped.rid, {}).get(stopped.choice)
        if request is None or request.stream.attempt != stopped.attempt or request.stream.handle != stopped.handle:
            return
        surplus = len(request.output_ids) - stopped.count
        if surplus > 0:
            del request.output_ids[stopped.count :]
        self._state.delivery.close(request)
        self._leave(request, RequestState.FINISHED, "stop_string")

    def on_step_failed(self, failed: StepFailed) -> None:
        """Undo a failed step and everything issued after it: all on board go back to the queue.

        Who was on board twice runs alone; who fails alone is failed, so that innocents are never blamed.
        """
        state = self._state
        if not state.in_flight.has(failed.step):
            return
        on_board = self.requeue_all()
        state.kv.forget_written_since(failed.step)
        for request in on_board:
            request.suspicion += 1
            if request.suspicion >= MAX_SUSPICION:
                self._fail(request, "internal_error", f"The model failed on this request: {failed.kind}.")

    def requeue_all(self) -> list[Request]:
        """Retract everything that runs, oldest first, and forget the steps in flight. Returns the requests."""
        state = self._state
        on_board = state.batch.on_board()
        for request in on_board:
            details = {"outputs": len(request.output_ids)}
            request.timeline.on_requeued(state.now, "requeued", request.lease.num_computed_tokens, details)
            state.batch.leave(request, RequestState.WAITING)
            request.in_flight = 0
        for request in state.queue.waiting:
            request.in_flight = 0
        state.queue.put_first(on_board)
        state.in_flight.clear()
        state.batch.forget_writes()
        return on_board
