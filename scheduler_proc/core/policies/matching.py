"""What of each waiting request is cached (POL-3), and which ones had better wait for a sibling (4.3)."""

from collections.abc import Iterable

from quartet.wire.config import SchedulerConfig
from scheduler_proc.core.radix import ID_BYTES, Namespace, Node, RadixTree
from scheduler_proc.core.request import Request

Match = tuple[int, tuple[int, Node]]
"""Output tokens that the request had; tokens of it that are cached, and the node where they end."""


class PrefixMatcher:
    """Looks waiting requests up in the tree, and remembers the answers of the last pass.

    An answer stands as it is while neither the tree's content nor the request has changed, and is a good place to go
    on from while its node is in the tree. Either way the path counts as just used, in the same order and with the same
    clock readings as if it had been matched from the root, since eviction order depends on that.
    """

    def __init__(self) -> None:
        self._tree: RadixTree | None = None
        self._version = -1
        self._known: dict[int, Match] = {}
        """By queue-entry number, which is renewed whenever a request is queued."""

    def match(self, requests: Iterable[Request], tree: RadixTree) -> None:
        """Set matched_tokens (at most the reusable ones, and what can be used of them) and matched_node of each
        request; none is deprioritized."""
        for request, (_, (tokens, node)) in zip(requests, self._find_all(requests, tree), strict=True):
            request.matched_tokens, request.matched_node = tokens, node
            request.is_deprioritized = False
            if tree.groups:
                request.matched_tokens = tree.usable(node, tokens)[1]

    def refresh(self, requests: Iterable[Request], tree: RadixTree) -> None:
        """Count the cached prefixes of the requests as just used, in the order given (POL-4)."""
        self._find_all(requests, tree)

    def _find_all(self, requests: Iterable[Request], tree: RadixTree) -> list[Match]:
        known = self._known if tree is self._tree else {}
        is_same = tree.version == self._version
        found: dict[int, Match] = {}
        for request in requests:
            outputs = len(request.output_ids)
            match = known.get(request.qseq)
            if match is not None and match[0] == outputs and is_same:
                tree.touch(match[1][1])
            else:
                earlier = match[1] if match is not None else None
                answer = tree.match_length(request.key(), request.reusable_tokens, request.namespace, earlier)
                # Most answers stay what they were. Not to keep equal ones spares the cycle collector.
                if match is None or match != (outputs, answer):
                    match = outputs, answer
            found[request.qseq] = match
        self._tree, self._version, self._known = tree, tree.version, found
        return list(found.values())


def forget_matches(requests: Iterable[Request]) -> None:
    """Reset what an earlier pass may have found out about requests that are not looked up in this one."""
    for request in requests:
        if request.matched_node is not None:
            request.matched_tokens, request.matched_node, request.is_deprioritized = 0, None, False


def deprioritize_siblings(requests: Iterable[Request], config: SchedulerConfig) -> None:
    """Put off requests that share a prefix with an earlier one and would find it cached a pass later (4.3).

    Only those with at most `in_batch_check_threshold` tokens cached are considered. A request is put off when it
    shares `in_batch_deprioritize_threshold` tokens or more with one that is not. Two sequences share n tokens iff
    their first n are equal, so a set of beginnings answers what a scratch tree would.
    """
    if config.in_batch_check_threshold < 0:
        return
    shared_tokens = config.in_batch_deprioritize_threshold
    leaders: dict[Namespace, set[bytes]] = {}
    for request in requests:
        if request.matched_tokens > config.in_batch_check_threshold or request.total_tokens < shared_tokens:
            continue
        beginning = _beginning(request, shared_tokens)
        beginnings = leaders.setdefault(request.namespace, set())
        # With a threshold of 0 even the first request is put off.
        if beginning in beginnings or not shared_tokens:
            request.is_deprioritized = True
        else:
            beginnings.add(beginning)


def _beginning(request: Request, tokens: int) -> bytes:
    key = request.prompt_key if tokens <= request.prompt_tokens else request.key()
    return key[: tokens * ID_BYTES]
