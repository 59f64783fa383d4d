"""How much a step may hold after the device has run out of memory: half of what failed, and twice as much later."""

RESULTS_BEFORE_GROWTH = 100


class MemoryLimit:
    """Bounds on the requests on board and on the prompt tokens of a step; None for no bound but the configured ones.
    `shortages` counts the steps that have failed for lack of memory.

    Args:
        page_size: tokens of a KV page, the least that a chunk may have.
    """

    def __init__(self, page_size: int) -> None:
        self.rows: int | None = None
        self.prefill_tokens: int | None = None
        self._page_size = page_size
        self._failed_rows = self._failed_tokens = 0
        self._results = 0
        self.shortages = 0

    def on_shortage(self, rows: int, prefill_tokens: int) -> bool:
        """A step has run out of memory; returns whether it can be tried with less.

        Args:
            rows: requests on board.
            prefill_tokens: prompt tokens of the step.
        """
        self.shortages += 1
        self._results = 0
        page_size = self._page_size
        has_less = False
        if prefill_tokens > page_size:
            self._failed_tokens = prefill_tokens
            self.prefill_tokens = max(prefill_tokens // 2 // page_size * page_size, page_size)
            has_less = True
        if rows > 1:
            self._failed_rows = rows
            self.rows = rows // 2
            has_less = True
        return has_less

    def on_result(self) -> None:
        """A step has a result: after some of them the bounds double, up to what has failed."""
        if self.rows is None and self.prefill_tokens is None:
            return
        self._results += 1
        if self._results < RESULTS_BEFORE_GROWTH:
            return
        self._results = 0
        if self.rows is not None:
            self.rows = None if 2 * self.rows >= self._failed_rows else 2 * self.rows
        if self.prefill_tokens is not None:
            doubled = 2 * self.prefill_tokens
            self.prefill_tokens = None if doubled >= self._failed_tokens else doubled

    def budget(self, chunk_tokens: int) -> int:
        """Return the prompt tokens that a step may have; `chunk_tokens` is -1 without chunking."""
        if self.prefill_tokens is None:
            return chunk_tokens
        return self.prefill_tokens if chunk_tokens < 0 else min(chunk_tokens, self.prefill_tokens)

    def is_full(self, on_board: int) -> bool:
        """Say whether no further request may be on board."""
        return self.rows is not None and on_board >= self.rows
