"""Postprocessing: a result appends tokens and ends requests, a failed step is undone (rules STEP-10 to STEP-12)."""

from quartet.quarantine import fingerprint
from quartet.wire.frames import ScoredChunk, StepFailed, StepResult, Stopped, TokenLogprobs, unpack_ids
from scheduler_proc.core.counters import SchedulerCounters
from scheduler_proc.core.delivery import Delivery
from scheduler_proc.core.in_flight import IssuedStep, StepsInFlight
from scheduler_proc.core.memory_limit import MemoryLimit
from scheduler_proc.core.request import Request
from scheduler_proc.core.request_table import RequestTable
from scheduler_proc.core.retraction import Retraction
from scheduler_proc.core.speculation import settle
from scheduler_proc.core.suspects import Suspects

Failure = tuple[str, str]
"""Code and message of a row without an id."""


class Results:
    """Takes what the worker and the detokenizer report."""

    def __init__(
        self,
        in_flight: StepsInFlight,
        delivery: Delivery,
        table: RequestTable,
        retraction: Retraction,
        suspects: Suspects,
        memory: MemoryLimit,
        counters: SchedulerCounters,
    ) -> None:
        self._suspects, self._memory = suspects, memory
        self._in_flight = in_flight
        self._delivery = delivery
        self._table = table
        self._retraction = retraction
        self._counters = counters

    def on_result(self, result: StepResult, now: float) -> None:
        """Apply one step's sampled ids, in row order."""
        issued = self._in_flight.take(result.step, now)
        if issued is None:
            return
        logprobs = dict(result.logprobs)
        failures = _failures(result) if result.bad_rows or result.grammar_errors else {}
        by_generation, delivery = self._in_flight.by_generation, self._delivery
        is_plain = not logprobs and not failures and delivery.stream_interval == 1
        if result.scored:
            self._take_scores(result.scored)
        detok, columns, taken = "", delivery.columns(""), 0
        generations, ids = unpack_ids(result.generations), unpack_ids(result.ids)
        rejected = self._settle_drafts(issued, generations, ids, failures) if issued.drafts else ()
        # The hot loop: what almost every row needs stands here, the rest in _take_row.
        for row, (generation, token_id) in enumerate(zip(generations, ids, strict=True)):
            request = by_generation.get(generation)
            if request is None:
                continue
            request.in_flight -= 1
            if request.slot < 0 and not request.in_flight:
                del by_generation[generation]
            if rejected and row in rejected:
                continue
            stream = request.stream
            if not is_plain or request.is_done or stream.first_token_s < 0 or request.suspicion:
                self._take_row(request, token_id, failures.get(row), logprobs.get(row), now)
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
                self._finish_if_complete(request, now)
        self._memory.on_result()
        self._counters.output_tokens += taken
        delivery.flush_tokens(result.step)

    def _settle_drafts(
        self, issued: IssuedStep, generations: list[int], ids: list[int], failures: dict[int, Failure]
    ) -> set[int]:
        """Take back the drafts that do not hold; return the rows that mean nothing."""
        rejected, lost = settle(issued, generations, ids, failures)
        for generation, count in lost.items():
            request = self._in_flight.by_generation.get(generation)
            if request is not None and count:
                self._retraction.drop_drafts(request, count)
        drafted = sum(map(len, issued.drafts.values()))
        self._counters.drafted_tokens += drafted
        self._counters.accepted_tokens += drafted - sum(lost.values())
        return rejected

    def _take_scores(self, chunks: list[ScoredChunk]) -> None:
        """Take log-probabilities of prompts; they go ahead of the step's tokens."""
        for chunk in chunks:
            request = self._in_flight.by_generation.get(chunk.generation)
            if request is not None and not request.is_done:
                self._delivery.take_scores(request, chunk)

    def _take_row(
        self, request: Request, token_id: int, failure: Failure | None, logprobs: TokenLogprobs | None, now: float
    ) -> None:
        """Take a row that is not plain: surplus, without an id, first, with log-probabilities, or sent at intervals."""
        if request.is_done:
            self._counters.wasted_rows += 1
        elif failure is not None:
            self._table.fail(request, 500, *failure, now)
        elif request.max_new_tokens == 0:
            self._table.finish(request, "length", now)
        else:
            request.output_ids.append(token_id)
            self._counters.output_tokens += 1
            self._suspects.note_output(request)
            if request.stream.first_token_s < 0:
                self._table.note_first_token(request, now)
            self._delivery.take_output(request, logprobs, now)
            self._finish_if_complete(request, now)

    def _finish_if_complete(self, request: Request, now: float) -> None:
        reason = request.end_reason()
        if reason is not None:
            self._table.finish(request, reason, now)

    def on_stopped(self, stopped: Stopped, now: float) -> None:
        """A stop string ended a request after `count` tokens: drop the surplus and finish it silently.

        The detokenizer has sent the end already.
        """
        request = self._table.find(stopped.rid, stopped.choice)
        if request is None or (request.stream.attempt, request.stream.handle) != (stopped.attempt, stopped.handle):
            return
        self._table.finish_cut(request, stopped.count, now)

    def on_step_failed(self, failed: StepFailed, now: float) -> None:
        """Undo a failed step and everything issued after it: all requests on board go back to the queue.

        A step that ran out of memory is tried with less on board, as long as that is possible. Otherwise a request that
        was on board of two failed steps runs alone next, and fails if it fails alone: so a request is
        never failed for the fault of another.
        """
        issued = self._in_flight.find(failed.step)
        if issued is None:
            return
        on_board = self._retraction.undo_step(failed.step, now)
        if failed.kind == "oom" and self._memory.on_shortage(len(on_board), issued.prefill_tokens):
            return
        for request in self._suspects.on_failed_step(on_board):
            if failed.kind == "oom":
                code, message = "out_of_memory", "The device has not the memory for this request, even by itself."
            else:
                code, message = "internal_error", f"The model failed on this request: {failed.kind}."
            self._table.fail(request, 500, code, message, now)

    def on_worker_lost(self, was_killed: bool | None, now: float) -> None:
        """Put everything back into the queue; what has ended one worker after the other is quarantined (R13).

        `was_killed` is None if the worker lives and only frames are lost, which is held against no request."""
        had_steps = bool(self._in_flight.steps)
        on_board = self._retraction.requeue_all(now)
        if was_killed is None or not had_steps:
            return
        for request in self._suspects.on_death(on_board, was_killed):
            key = fingerprint(request.prompt_key, request.params)
            error = self._suspects.quarantine.refuse(key, "worker", now)
            self._table.fail(request, error.status, error.code, error.message, now)


def _failures(result: StepResult) -> dict[int, Failure]:
    """Return the rows of a result whose ids mean nothing."""
    found = {row: ("grammar_failed", f"The grammar cannot be followed: {why}.") for row, why in result.grammar_errors}
    bad = "The model produced numbers that are not finite."
    return found | dict.fromkeys(result.bad_rows, ("model_output_invalid", bad))
