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
            message = "The model produced numbers that are not finite."
            state.table.fail(request, 500, "model_output_invalid", message, state.now)
        elif request.max_new_tokens == 0:
            state.table.finish(request, "length", state.now)
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
            self._state.table.finish(request, reason, self._state.now)

    def on_stopped(self, stopped: Stopped) -> None:
        """A stop string ended a request after `count` tokens: drop the surplus and finish it silently.

        The detokenizer has sent the end already.
        """
        request = self._state.table.find(stopped.rid, stopped.choice)
        if request is None or request.stream.attempt != stopped.attempt or request.stream.handle != stopped.handle:
            return
        self._state.table.finish_cut(request, stopped.count, self._state.now)

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
                message = f"The model failed on this request: {failed.kind}."
                state.table.fail(request, 500, "internal_error", message, state.now)

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
