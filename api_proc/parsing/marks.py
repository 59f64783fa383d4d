"""Finds literal marks in text that comes in pieces."""

from collections.abc import Iterable


def find_first(text: str, marks: Iterable[str], start: int = 0) -> tuple[int, str]:
    """Return where the first of `marks` begins, at `start` or later, and which it is; -1 and "" if there is none.

    Of marks that begin at the same place it is the longest.
    """
    found, at = "", -1
    for mark in marks:
        place = text.find(mark, start) if at < 0 else text.find(mark, start, at + len(mark))
        if place >= 0 and (at < 0 or (place, -len(mark)) < (at, -len(found))):
            found, at = mark, place
    return at, found


def certain_end(text: str, marks: Iterable[str], start: int = 0) -> int:
    """Return how far `text` is certain to hold no part of a mark: to its end, or to what may be a mark's beginning."""
    end = len(text)
    for mark in marks:
        at = text.find(mark[0], max(start, len(text) - len(mark) + 1))
        while 0 <= at < end:
            if mark.startswith(text[at:]):
                end = at
                break
            at = text.find(mark[0], at + 1)
    return end
