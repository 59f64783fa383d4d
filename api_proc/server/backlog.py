"""What an EventStream has not been able to write yet: its client does not read, or has a response to catch up with."""

from typing import NamedTuple, Protocol

from api_proc.server.rendering import ChoiceOutput
from quartet.client.request import Output
from quartet.wire.frames import Finish, TextLogprobs

MOST_HELD_BYTES = 4 << 20
LOGPROB_BYTES = 256
"""What a token's name, bytes and log-probability take in memory, about."""


class TooFarBehind(Exception):
    """The client reads so slowly that too much waits for it."""


class Increment(NamedTuple):
    """Output of one choice, of all choices of the response."""

    choice: int
    ids: list[int]
    text: str
    logprobs: list[TextLogprobs] | None
    finish: Finish | None


class Backlog(Protocol):
    """Output that waits, in the order in which it is to be written; true while there is any."""

    def __bool__(self) -> bool: ...

    def add(self, base: int, outputs: list[Output]) -> None:
        """Take output of the prompt whose first choice is `base`; raises TooFarBehind."""
        ...

    def pop(self) -> Increment:
        """Remove and return what is to be written next."""
        ...

    def clear(self) -> None:
        """Drop everything."""
        ...


class MergedBacklog:
    """Output merged by choice: one event for each choice when the transport is writable again.

    Holds at most MOST_HELD_BYTES, apart from what the request itself bounds: the log-probabilities of its prompt.
    """

    def __init__(self) -> None:
        self._held_bytes = 0
        self._held: dict[int, ChoiceOutput] = {}

    def __bool__(self) -> bool:
        return bool(self._held)

    def add(self, base: int, outputs: list[Output]) -> None:
        """Append output to its choice's."""
        for output in outputs:
            held = self._held.setdefault(base + output.choice, ChoiceOutput())
            held.add(output)
            self._held_bytes += len(output.text)
            if output.logprobs:
                self._held_bytes += LOGPROB_BYTES * sum(1 + len(one.top) for one in output.logprobs if not one.rank)
        if self._held_bytes > MOST_HELD_BYTES:
            raise TooFarBehind

    def pop(self) -> Increment:
        """Remove and return all output of one choice."""
        choice = next(iter(self._held))
        held = self._held.pop(choice)
        if not self._held:
            self._held_bytes = 0
        return Increment(choice, held.ids, held.text, held.logprobs, held.finish)

    def clear(self) -> None:
        """Drop everything."""
        self._held.clear()
        self._held_bytes = 0
