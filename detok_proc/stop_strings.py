"""Finds stop strings in text that arrives in pieces, and holds back what could be the start of one.

The match that ends first wins, the longest of those that end together: so the result depends on the text alone and
not on how tokens cut it. Each stop string is followed by the automaton of Knuth, Morris and Pratt, which keeps the
cost per character constant whatever the strings are.
"""

from collections.abc import Sequence


class StopMatcher:
    """The stop strings of one stream and how far each has been seen.

    Args:
        stops: the strings; empty ones are ignored.
        include_match: whether the matched string itself is part of the output.
    """

    def __init__(self, stops: Sequence[str], include_match: bool) -> None:
        distinct = sorted({stop for stop in stops if stop}, key=len, reverse=True)
        self._patterns = [(stop, _borders(stop)) for stop in distinct]
        self._seen = [0] * len(distinct)
        self._first_characters = frozenset(stop[0] for stop in distinct)
        self._include_match = include_match
        self._held = ""
        self.matched: str | None = None

    @property
    def held_count(self) -> int:
        """How many characters are held back."""
        return len(self._held)

    def push(self, text: str) -> str:
        """Take the next piece; return the text that may be shown. Must not be called after a match."""
        if not self._held and self._first_characters.isdisjoint(text):
            return text
        buffer = self._held + text
        for end, character in enumerate(text, len(self._held) + 1):
            match = self._advance(character)
            if match is not None:
                self.matched = match
                self._held = ""
                return buffer[: end if self._include_match else end - len(match)]
        shown = len(buffer) - max(self._seen, default=0)
        self._held = buffer[shown:]
        return buffer[:shown]

    def flush(self) -> str:
        """Return what was held back: the text has ended, so it starts no stop string."""
        held, self._held = self._held, ""
        return held

    def _advance(self, character: str) -> str | None:
        """Move every automaton by one character; return the longest string that is now complete."""
        seen = self._seen
        match = None
        for index, (stop, borders) in enumerate(self._patterns):
            length = seen[index]
            while length and stop[length] != character:
                length = borders[length - 1]
            if stop[length] == character:
                length += 1
            if length == len(stop):
                match = match or stop
                length = borders[length - 1]
            seen[index] = length
        return match


def _borders(pattern: str) -> list[int]:
    """Return, for each prefix, the length of its longest proper prefix that is also its suffix."""
    borders = [0] * len(pattern)
    length = 0
    for index in range(1, len(pattern)):
        while length and pattern[index] != pattern[length]:
            length = borders[length - 1]
        if pattern[index] == pattern[length]:
            length += 1
        borders[index] = length
    return borders
