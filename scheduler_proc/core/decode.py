"""One decode step: does the next token of every row fit, and who gives way if not (rules RET-1 to RET-13)."""

from scheduler_proc.core.request import Request
from scheduler_proc.core.retract import Retraction
from scheduler_proc.core.retraction import pick_victim
from scheduler_proc.core.state import State


class DecodePass:
    """Prepares decode rows. `state` is shared with the rest of the scheduler."""

    def __init__(self, state: State, retraction: Retraction) -> None:
        self._state = state
        self._retraction = retraction
        self._steps = 0

    def make_fit(self, rows: list[Request]) -> tuple[list[Request], bool]:
        """Retract until the next token of the rest fits.

        Returns who decodes now, perhaps nobody, and whether anybody was retracted. The ratio is re-estimated if so.
        """
        state = self._state
        self._steps += 1
        is_forced = state.config.test_retract and self._steps % 3 == 0 and len(rows) > 1
        if not is_forced and self.fits(rows):
            return rows, False
        if len(rows) < len(state.batch.running) and not is_forced:
            # Requests that only wait for their last result will free their pages: cheaper than a retraction (RET-9).
            return [], False
        if len(rows) == 1:
            self._settle_lone(rows[0])
            return [], False
        return self._retract(rows), True

    def fits(self, rows: list[Request]) -> bool:
        """Evict what is short of the rows' next tokens; say whether they fit then (RET-1)."""
        return self._state.kv.make_room(self._needed(rows))

    def _needed(self, rows: list[Request]) -> int:
        page_size = self._state.page_size
        return page_size * sum(1 for request in rows if request.lease.num_computed_tokens % page_size == 0)

    def _retract(self, rows: list[Request]) -> list[Request]:
        """Take victims until the rest fits (RET-2, RET-3, RET-5); returns the survivors."""
        state = self._state
        kv = state.kv
        rows = list(rows)
        while True:
            shortage = self._needed(rows) - kv.pool.available_tokens
            victim = pick_victim(rows, state.config.retraction_policy)
            rows.remove(victim)
            self._retraction.retract(victim, shortage)
            kv.make_room(state.config.retract_decode_steps * len(rows))
            if self.fits(rows):
                break
            if len(rows) == 1:
                self._settle_lone(rows[0])
                rows = []
                break
        state.ratio.on_retract((len(request.output_ids), request.max_new_tokens) for request in rows)
        return rows

    def _settle_lone(self, request: Request) -> None:
        """One request is left and does not fit: it waits while pages can still come back. Then it makes way for a
        prompt in progress, which could not go on either; alone it is failed (RET-4)."""
        state = self._state
        if state.in_flight.steps:
            return
        if state.batch.chunked is not None:
            self._retraction.retract(request, self._needed([request]))
        else:
            self._retraction.fail_alone(request)
