"""What is refused before llguidance sees it: sources that are too large.

Counting costs less than a millisecond; the compiler's own time and memory are bounded by its process.
"""

import msgspec

from quartet.wire.frames import Grammar

MAX_SOURCE_BYTES = 64 << 10
MAX_TOOLS_BYTES = 256 << 10
"""Tools of an agent: many schemas, each bounded by the API."""
MAX_REGEX_BYTES = 4 << 10
MAX_MARKER_BYTES = 256
MAX_MARKERS = 64
MAX_CHOICES = 1000


class GrammarError(Exception):
    """A grammar that cannot be used; the text says why."""


def check_bounds(grammar: Grammar) -> None:
    """Raise GrammarError if a grammar is too large."""
    limit = {"tools": MAX_TOOLS_BYTES, "regex": MAX_REGEX_BYTES}.get(grammar.kind, MAX_SOURCE_BYTES)
    check_bytes("it", grammar.source, limit)
    check_bytes("the regex of the whitespace", grammar.whitespace or "", MAX_REGEX_BYTES)
    if len(grammar.markers) > MAX_MARKERS:
        raise GrammarError(f"it has more than {MAX_MARKERS} markers")
    for text in (*grammar.markers, grammar.after, grammar.opening):
        check_bytes("a marker", text, MAX_MARKER_BYTES)


def check_bytes(what: str, text: str, limit: int) -> None:
    """Raise GrammarError if `text` has more bytes than `limit`."""
    if len(text) > limit or len(text.encode("utf-8", "surrogatepass")) > limit:
        raise GrammarError(f"{what} has more than {limit} bytes")


def read_choices(source: str) -> list[str]:
    """Return the strings of a choice; raises GrammarError."""
    choices = msgspec.json.decode(source, type=list[str])
    if len(choices) > MAX_CHOICES:
        raise GrammarError(f"it has more than {MAX_CHOICES} choices")
    return choices
