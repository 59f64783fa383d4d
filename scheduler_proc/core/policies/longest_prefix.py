"""The longest cached prefix first, and the session that was served least first."""

from scheduler_proc.core.policies.context import PolicyContext
from scheduler_proc.core.radix_node import session_at
from scheduler_proc.core.request import Request

LAST = 1 << 40
"""More than any number of cached tokens."""


def order_by_prefix(requests: list[Request], context: PolicyContext) -> None:
    """lpm: the most cached tokens first, those put off for a sibling last.

    For a batch that is known this is the order of a depth-first walk, which gives the best hit rate (SGLang, arXiv
    2312.07104). It starves cold requests.
    """
    requests.sort(key=lambda request: LAST * request.is_deprioritized - request.matched_tokens)


def order_by_service(requests: list[Request], context: PolicyContext) -> None:
    """session: what is at least half cached first, then the session whose turns were served least so far (SES-2).

    A request without a session was served nothing. Source of the second: Autellix (arXiv 2502.13965).
    """

    def rank(request: Request) -> tuple[bool, bool, int, int]:
        is_cold = 2 * request.matched_tokens < request.total_tokens
        return request.is_deprioritized, is_cold, _served(request), -request.matched_tokens

    requests.sort(key=rank)


def _served(request: Request) -> int:
    session = request.session or session_at(request.matched_node)
    return 0 if session is None else session.served
