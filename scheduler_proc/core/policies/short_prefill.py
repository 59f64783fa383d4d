"""The shortest prefill first, and the share of a chunk that is kept for short ones (4.8)."""

from collections.abc import Iterable

from scheduler_proc.core.lengths import ceil_to
from scheduler_proc.core.policies.context import PolicyContext
from scheduler_proc.core.request import Request


def order_by_prefill(requests: list[Request], context: PolicyContext) -> None:
    """shortest-prefill-first: the fewest tokens to compute first, those put off for a sibling last."""
    requests.sort(key=lambda request: (request.is_deprioritized, _work(request)))


def reserve_for_short(waiting: Iterable[Request], chunk_remaining: int, rem_chunk: int, page_size: int) -> int:
    """Return the tokens of a chunk to keep for waiting requests shorter than the rest of the one in progress (4.8).

    If any, the caller also caps the continuation at `rem_chunk` less these, rounded down to a page.

    Args:
        waiting: the queue, sorted in this pass: matched_tokens must be of this pass.
        chunk_remaining: tokens that the chunked request in progress has yet to compute.
        rem_chunk: tokens left in the chunk of this pass.
        page_size: P; the continuation keeps at least one page.
    """
    reserved = 0
    if rem_chunk < 2 * page_size:
        return reserved
    for request in waiting:
        work = _work(request)
        charge = ceil_to(work, page_size)
        if work >= chunk_remaining or reserved + charge > rem_chunk - page_size:
            break
        reserved += charge
    return reserved


def _work(request: Request) -> int:
    return max(1, request.total_tokens - request.matched_tokens)
