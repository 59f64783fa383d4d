"""Where a prompt is cut so that the state there can be kept for others (rule CKP-2). Rules without state.

A state can only be copied where a chunk ends. Prompts part where the cached pages of one end, and where another that
waits goes on differently; the second is known before the first has been computed.
"""

from collections.abc import Iterable

from scheduler_proc.core.lengths import floor_to
from scheduler_proc.core.radix import ID_BYTES
from scheduler_proc.core.radix_node import common_bytes
from scheduler_proc.core.request import Request, RequestState


def prompt_cuts(request: Request, waiting: Iterable[Request], least_tokens: int, page_size: int) -> list[int]:
    """Return the lengths at which the prompt of a request, whose match is locked, is cut; ascending, whole pages.

    Args:
        waiting: the queue.
        least_tokens: from what it starts with to the first cut, and from cut to cut.
    """
    lease, cuts = request.lease, list[int]()
    last = lease.protected
    for cut in sorted((lease.reach, shared_tokens(request, waiting, page_size))):
        if cut - last >= least_tokens:
            cuts.append(cut)
            last = cut
    return cuts


def shared_tokens(request: Request, waiting: Iterable[Request], page_size: int) -> int:
    """Return how many tokens, in whole pages, a request shares with one that waits at most; both compute some more."""
    key, page_bytes = request.key(), page_size * ID_BYTES
    end = floor_to(request.reusable_tokens, page_size) * ID_BYTES
    longest = request.lease.protected * ID_BYTES
    wanted = key[: longest + page_bytes]
    for other in waiting:
        prompt = other.prompt_key
        if longest >= end:
            break
        if not prompt.startswith(wanted) or other is request or other.namespace != request.namespace:
            continue
        if other.state is not RequestState.WAITING or other.reusable_tokens * ID_BYTES < len(wanted):
            continue
        usable = min(end, floor_to(other.reusable_tokens, page_size) * ID_BYTES)
        longest = common_bytes(prompt, key, 0, usable, page_bytes)
        wanted = key[: longest + page_bytes]
    return longest // ID_BYTES
