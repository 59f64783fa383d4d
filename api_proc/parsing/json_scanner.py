"""Follows one JSON value through text that comes in pieces.

It checks the value as it goes, so that a mark inside a string is told from one that ends a broken value. Regular
expressions take whole tokens; nothing is done once for every character.
"""

import re
from enum import Enum, auto

_SPACE = re.compile(r"[ \t\r\n]*")
_IN_STRING = re.compile(r'[^"\\\x00-\x1f]*')
_ESCAPE = re.compile(r'\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})')
_PARTIAL_ESCAPE = re.compile(
    r"(?:\\u[dD][89abAB][0-9a-fA-F]{2})?\\(?:u[0-9a-fA-F]{0,3})?\Z|\\u[dD][89abAB][0-9a-fA-F]{2}\Z"
)
"""What is held at the text's end: the beginning of an escape or, since two make one character, of a pair of them."""
_CUT_ESCAPE = re.compile(r"(?<!\\)(?:\\\\)*(\\(?:u[0-9a-fA-F]{0,3})?)\Z")
_SCALAR = re.compile(r"[-+.0-9A-Za-z]{1,1024}")
_WHOLE_SCALAR = re.compile(r"true|false|null|-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
_CLOSERS = {"{": "}", "[": "]"}


def after_space(text: str, at: int) -> int:
    """Return the end of the white space at `at`."""
    space = _SPACE.match(text, at)
    assert space is not None
    return space.end()


def without_cut_escape(text: str) -> str:
    """Return `text`, which need not be JSON, without the beginning of an escape at its end."""
    cut = _CUT_ESCAPE.search(text)
    return text[: cut.start(1)] if cut else text


class _Next(Enum):
    """What may come next."""

    VALUE = auto()
    VALUE_OR_CLOSE = auto()
    KEY = auto()
    KEY_OR_CLOSE = auto()
    COLON = auto()
    COMMA_OR_CLOSE = auto()
    STRING = auto()
    KEY_STRING = auto()


class JsonScanner:
    """The state within one value."""

    def __init__(self) -> None:
        self.is_done = False
        self.is_broken = False
        self._next = _Next.VALUE
        self._closers: list[str] = []

    def scan(self, text: str, at: int, is_end: bool = False) -> int:
        """Return how far the value is certain from `at` on.

        That is never inside an escape, a pair of surrogates, a number or a word. Call it again from there when more
        text has come. Sets `is_done` at the value's end and `is_broken` where it cannot be JSON any more. With
        `is_end` no more text will come.
        """
        while not (self.is_done or self.is_broken):
            if self._next in (_Next.STRING, _Next.KEY_STRING):
                after = self._string(text, at)
            else:
                after = self._token(text, at, is_end)
            if after == at:
                break
            at = after
        return at

    def _string(self, text: str, at: int) -> int:
        run = _IN_STRING.match(text, at)
        assert run is not None
        end = run.end()
        if end == len(text):
            return end
        if text[end] == '"':
            self._end_value() if self._next is _Next.STRING else self._expect(_Next.COLON)
            return end + 1
        if _PARTIAL_ESCAPE.match(text, end):
            return end
        escape = _ESCAPE.match(text, end)
        self.is_broken = escape is None
        return end if escape is None else escape.end()

    def _token(self, text: str, at: int, is_end: bool) -> int:
        start = after_space(text, at)
        if start == len(text):
            return start
        character = text[start]
        if character in "{[" and self._takes_value():
            self._closers.append(_CLOSERS[character])
            self._expect(_Next.KEY_OR_CLOSE if character == "{" else _Next.VALUE_OR_CLOSE)
        elif self._closers and character == self._closers[-1] and self._can_close():
            self._closers.pop()
            self._end_value()
        elif character == '"' and (self._takes_value() or self._next in (_Next.KEY, _Next.KEY_OR_CLOSE)):
            self._expect(_Next.STRING if self._takes_value() else _Next.KEY_STRING)
        elif character == ":" and self._next is _Next.COLON:
            self._expect(_Next.VALUE)
        elif character == "," and self._next is _Next.COMMA_OR_CLOSE:
            self._expect(_Next.KEY if self._closers[-1] == "}" else _Next.VALUE)
        elif self._takes_value():
            return self._scalar(text, start, is_end)
        else:
            self.is_broken = True
            return start
        return start + 1

    def _scalar(self, text: str, start: int, is_end: bool) -> int:
        run = _SCALAR.match(text, start)
        if run is not None and run.end() == len(text) and not is_end:
            return start
        if run is None or _WHOLE_SCALAR.fullmatch(run[0]) is None:
            self.is_broken = True
            return start
        self._end_value()
        return run.end()

    def _takes_value(self) -> bool:
        return self._next in (_Next.VALUE, _Next.VALUE_OR_CLOSE)

    def _can_close(self) -> bool:
        return self._next in (_Next.COMMA_OR_CLOSE, _Next.KEY_OR_CLOSE, _Next.VALUE_OR_CLOSE)

    def _expect(self, what: _Next) -> None:
        self._next = what

    def _end_value(self) -> None:
        self._expect(_Next.COMMA_OR_CLOSE)
        self.is_done = not self._closers
