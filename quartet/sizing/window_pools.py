"""How the memory for KV is divided between layers that see everything and layers that see a window of tokens.

A request holds pages for all of its tokens in page group 0, and in each other group only those of a window and of the
prompt tokens of a step. What the pools have follows from the number of pages of group 0, for the plan and the worker.
"""

from dataclasses import dataclass

from quartet.checkpoint.spec import ModelSpec
from quartet.sizing.model_bytes import page_bytes
from quartet.wire.config import DEFAULT_SLOTS, DEFAULT_SLOTS_CPU, Config
from quartet.wire.lengths import AUTO_CHUNK, AUTO_CHUNK_CPU

WINDOW_SHARE = 4
"""The pool of a window has one token for so many of group 0: right for requests of four windows' length. Longer ones
run out of group 0 first, shorter ones out of this; equal parts would leave longer ones hardly more room than one pool
for all layers does."""
_SPARE_PAGES = 4
"""For rounding at both ends of a window and of a chunk, and the page that admission leaves free."""


@dataclass(frozen=True, slots=True)
class WindowPool:
    """The pool of one page group with a window. `least` pages serve a request alone with the largest chunk, `most`
    those of all slots and as many cached prefixes."""

    window: int
    page_bytes: int
    least: int
    most: int

    def pages(self, page_count: int) -> int:
        """Return its pages, dummy page excluded, where group 0 has `page_count`: never more than that."""
        return min(page_count, max(self.least, min(self.most, -(-page_count // WINDOW_SHARE))))


def window_pools(
    config: Config, spec: ModelSpec, item_bytes: int, is_cpu: bool, num_shards: int = 1
) -> tuple[WindowPool, ...]:
    """Return the pools of one rank beside that of group 0; none for a model whose layers all see the same.

    `item_bytes` are those of a number in the KV cache."""
    page_size, scheduler = config.worker.page_size, config.scheduler
    chunk = scheduler.chunked_prefill_size or (AUTO_CHUNK_CPU if is_cpu else AUTO_CHUNK)
    chunk_pages = -(-(chunk if chunk > 0 else config.require_model().context_length) // page_size)
    slots = scheduler.max_running_requests or (DEFAULT_SLOTS_CPU if is_cpu else DEFAULT_SLOTS)
    pools = []
    for group, window in enumerate(spec.page_groups[1:], 1):
        seen = -(-window // page_size)
        most = 2 * slots * (seen + 1) + chunk_pages + _SPARE_PAGES
        size = page_bytes(spec, page_size, item_bytes, num_shards, group)
        pools.append(WindowPool(window, size, seen + chunk_pages + _SPARE_PAGES, most))
    return tuple(pools)


def pools_bytes(page_count: int, page_bytes: float, windows: tuple[WindowPool, ...]) -> float:
    """Return the bytes of all pools with their dummy pages, where one of group 0 has `page_bytes`."""
    return (page_count + 1) * page_bytes + sum((one.pages(page_count) + 1) * one.page_bytes for one in windows)


def fitting_pages(budget_bytes: int, page_bytes: float, windows: tuple[WindowPool, ...]) -> int:
    """Return the most pages of group 0 with which all pools fit; less than 1 if none does."""
    low, high = -1, max(-1, int(budget_bytes // page_bytes) - 1)
    while low < high:
        middle = (low + high + 1) // 2
        if pools_bytes(middle, page_bytes, windows) <= budget_bytes:
            low = middle
        else:
            high = middle - 1
    return low
