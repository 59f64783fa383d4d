"""Queries of one api process to the scheduler, by number. Sans-IO."""

from collections.abc import Callable

from quartet.runtime.core import Sent
from quartet.wire.frames import Query, QueryReply
from quartet.wire.ids import Role, process_name

SCHEDULER = process_name(Role.SCHEDULER, 0)


class Queries:
    """Queries without a reply so far.

    Args:
        name: the address that replies go to.
        first: numbers rise from here; those of a predecessor at the address are below.
    """

    def __init__(self, name: str, first: int) -> None:
        self._name = name
        self._waiting: dict[int, Callable[[bytes], None]] = {}
        self._last = first

    def start(
        self, what: str, argument: str, tenant: str | None, on_reply: Callable[[bytes], None]
    ) -> tuple[int, list[Sent]]:
        """Begin a query (frames.Query); returns its number, for `end`, and what to send."""
        self._last += 1
        self._waiting[self._last] = on_reply
        return self._last, [(SCHEDULER, Query(self._last, self._name, what, argument, tenant))]

    def take(self, reply: QueryReply) -> None:
        """Hand a reply over, unless its query has ended."""
        on_reply = self._waiting.pop(reply.number, None)
        if on_reply is not None:
            on_reply(reply.body)

    def end(self, number: int) -> None:
        """Forget a query. Idempotent."""
        self._waiting.pop(number, None)
