"""One decode step: does the next token of every row fit, and who gives way if not (rules RET-1 to RET-13)."""

from quartet.frames import Failed
from scheduler_proc.core.request import Request
from scheduler_proc.core.request import State as RequestState
from scheduler_proc.core.retraction import pick_victim
from scheduler_proc.core.state import State


class DecodePass:
    """Prepares decode steps. `state` is shared with the rest of the scheduler."""

    def __init__(self, state: State) -> None:
        self._state = state

    def form(self) -> list[tuple[int, int, int]] | None:
        """Advance every row by one token; returns page table writes (slot, index, page), or None to not decode now.

        Rows whose last token is launched already have left their slot, so every running request with a slot decodes.
        """
        state = self._state
        rows = [request for request in state.running.values() if request.slot >= 0]
        if not rows:
            return None
        kv = state.require_kv()
        if not kv.make_room(self._needed(rows)):
            if len(rows) < len(state.running):
                # Requests that only wait for their last result will free their pages: cheaper than a retraction.
                return None
            rows = self._retract(rows)
            if not rows:
                return None
        else:
            state.ratio.on_decode()
        return self._advance(rows)

    def _needed(self, rows: list[Request]) -> int:
        page_size = self._state.page_size
        return page_size * sum(1 for request in rows if request.committed % page_size == 0)

    def _advance(self, rows: list[Request]) -> list[tuple[int, int, int]]:
        kv = self._state.require_kv()
        page_size = kv.page_size
        writes = []
        for request in rows:
            if request.committed % page_size == 0:
                (page,) = kv.extend(request, request.committed + 1)
                writes.append((request.slot, len(request.pages) - 1, page))
            request.committed += 1
            request.launched += 1
            request.in_flight += 1
        return writes

    def _retract(self, rows: list[Request]) -> list[Request]:
        """Take victims until the rest fits; returns the survivors. The last one is failed, not retracted (RET-4)."""
        state = self._state
        kv = state.require_kv()
        while not kv.make_room(self._needed(rows)):
            if len(rows) == 1:
                if state.chunked is not None or state.outstanding:
                    # A prompt being computed holds the rest, or pages are about to come back: wait for them.
                    return []
                self._fail_alone(rows[0])
                return []
            victim = pick_victim(rows)
            rows.remove(victim)
            self.retract(victim)
            kv.make_room(state.config.retract_decode_steps * len(rows))
        state.ratio.on_retract((len(request.output_ids), request.max_new_tokens) for request in rows)
        return rows

    def retract(self, request: Request) -> None:
        """Give a request's pages, lock and slot back and queue it again; its output stays (RET-5 to RET-7)."""
        state = self._state
        state.counters.retractions += 1
        state.counters.retracted_tokens += request.committed
        request.retractions += 1
        state.leave_batch(request)
        state.give_slot_back(request)
        state.require_kv().release(request)
        request.move_to(RequestState.WAITING)
        state.requeue(request)

    def _fail_alone(self, request: Request) -> None:
        state = self._state
        state.leave_batch(request)
        state.give_slot_back(request)
        state.require_kv().release(request)
        request.move_to(RequestState.FAILED)
        state.counters.failed += 1
        state.outbox.close(request)
        state.outbox.put(
            request.reply_to,
            Failed(
                request.rid,
                request.choice,
                request.attempt,
                500,
                "out_of_memory",
                "The KV cache is too small for this request even after retracting every other request.",
            ),
        )
        state.forget(request)
