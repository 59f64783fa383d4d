"""The page pool: which KV pages are free. It knows numbers only; the memory is the worker's."""

from quartet.wire.errors import InvariantViolation


class PagePool:
    """Free pages 1 to `page_count`; page 0 is the worker's dummy and is never handed out (INV-8)."""

    def __init__(self, page_count: int, page_size: int) -> None:
        self.page_count = page_count
        self.page_size = page_size
        self._free = list(range(page_count, 0, -1))

    @property
    def available_tokens(self) -> int:
        """Free pages in tokens (`avail`)."""
        return len(self._free) * self.page_size

    @property
    def capacity_tokens(self) -> int:
        """The whole pool in tokens (`N`)."""
        return self.page_count * self.page_size

    def allocate(self, count: int) -> list[int]:
        """Take `count` pages; the caller has made room before, a shortage is a bug."""
        if count > len(self._free):
            raise InvariantViolation("INV-1", f"{count} pages wanted, {len(self._free)} free")
        if count == 0:
            return []
        taken = self._free[-count:]
        del self._free[-count:]
        return taken

    def free(self, pages: list[int]) -> None:
        """Give pages back; they may be handed out again at once, since the worker runs steps in order."""
        self._free.extend(pages)

    def free_pages(self) -> list[int]:
        """Return a copy of the free list, for the audit."""
        return list(self._free)
