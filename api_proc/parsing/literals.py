"""Turns literals that are no JSON into JSON while they come: Python's, and those of Gemma's calls."""

import json
import re
from enum import Enum, auto
from typing import NamedTuple

from api_proc.parsing.json_scanner import after_space
from api_proc.parsing.marks import certain_end, find_first

_SCALAR = re.compile(r"[-+.0-9A-Za-z_]{1,1024}")
_JSON_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
_DECIMAL = re.compile(r"[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?")
_HEX = re.compile(r"[0-9a-fA-F]+")
_BARE_KEY = re.compile(r"([^\s:,{}\[\]()\"'<>]{1,256})[ \t\r\n]{0,8}(?=:)")
_BARE_KEY_BEGUN = re.compile(r"[^\s:,{}\[\]()\"'<>]{1,256}[ \t\r\n]{0,8}\Z")
_WORDS = {"True": "true", "true": "true", "False": "false", "false": "false", "None": "null", "null": "null"}
_CLOSERS = {"{": "}", "[": "]", "(": ")"}
_IN_JSON = {"{": "{", "[": "[", "(": "[", "}": "}", "]": "]", ")": "]"}
_ESCAPES = {"\n": "", "\\": "\\", "'": "'", '"': '"', "a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_DIGITS = {"x": 2, "u": 4, "U": 8}
_MAX_NUMBER = 300
"""Characters of a number that is not written as JSON writes it."""


class Dialect(NamedTuple):
    """How literals are written.

    Fields:
        quotes: what may stand around a string, the longest first.
        has_escapes: whether a backslash in a string begins an escape.
        has_bare_keys: whether keys of objects may stand without quotes.
    """

    quotes: tuple[str, ...]
    has_escapes: bool
    has_bare_keys: bool


PYTHON = Dialect(('"""', "'''", '"', "'"), has_escapes=True, has_bare_keys=False)


def quoted(text: str) -> str:
    """Return `text` as the inside of a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


class _Next(Enum):
    """What may come next."""

    VALUE = auto()
    VALUE_OR_CLOSE = auto()
    KEY = auto()
    KEY_OR_CLOSE = auto()
    COLON = auto()
    COMMA_OR_CLOSE = auto()


_CAN_CLOSE = (_Next.VALUE_OR_CLOSE, _Next.KEY_OR_CLOSE, _Next.COMMA_OR_CLOSE)


class LiteralReader:
    """The state within one literal."""

    def __init__(self, dialect: Dialect) -> None:
        self.is_done = False
        self.is_broken = False
        self._dialect = dialect
        self._next = _Next.VALUE
        self._closers: list[str] = []
        self._quote = ""
        self._is_comma_due = False
        self._json = ""

    def read(self, text: str, at: int, is_end: bool) -> int:
        """Turn what is certain from `at` on, and return its end; see JsonScanner.scan. `take` returns the JSON."""
        while not (self.is_done or self.is_broken):
            after = self._string(text, at) if self._quote else self._token(text, at, is_end)
            if after == at:
                break
            at = after
        return at

    def take(self) -> str:
        """Return the JSON since the last take."""
        text, self._json = self._json, ""
        return text

    def _string(self, text: str, at: int) -> int:
        end, mark = find_first(text, (self._quote, "\\") if self._dialect.has_escapes else (self._quote,), at)
        if end < 0:
            end = certain_end(text, (self._quote,), at)
        self._json += quoted(text[at:end])
        if mark == "\\":
            return self._escape(text, end)
        if mark:
            self._json += '"'
            self._quote = ""
            if self._next is _Next.KEY:
                self._next = _Next.COLON
            else:
                self._end_value()
        return end + len(mark)

    def _escape(self, text: str, at: int) -> int:
        kind = text[at + 1 : at + 2]
        end = at + 2 + _DIGITS.get(kind, 0)
        if not kind or end > len(text):
            return at
        digits = text[at + 2 : end]
        if kind not in _DIGITS:
            self._json += quoted(_ESCAPES.get(kind, f"\\{kind}"))
        elif not _HEX.fullmatch(digits) or int(digits, 16) > 0x10FFFF:
            self.is_broken = True
            return at
        elif kind == "U":
            # By way of UTF-16: the JSON of a character beyond the first 65,536 is a pair of escapes.
            self._json += json.dumps(chr(int(digits, 16)))[1:-1]
        else:
            # As an escape again, since it may be one of a pair.
            self._json += f"\\u{digits:0>4}"
        return end

    def _token(self, text: str, at: int, is_end: bool) -> int:
        start = after_space(text, at)
        if start == len(text):
            return start
        character = text[start]
        if self._closers and character == self._closers[-1] and self._next in _CAN_CLOSE:
            self._json += _IN_JSON[self._closers.pop()]
            self._is_comma_due = False
            self._end_value()
        elif self._next in (_Next.KEY, _Next.KEY_OR_CLOSE):
            return self._key(text, start)
        elif self._next in (_Next.VALUE, _Next.VALUE_OR_CLOSE):
            return self._value(text, start, is_end)
        elif character == ":" and self._next is _Next.COLON:
            self._json += ": "
            self._next = _Next.VALUE
        elif character == "," and self._next is _Next.COMMA_OR_CLOSE:
            # Python allows a comma after the last element, JSON does not.
            self._is_comma_due = True
            self._next = _Next.KEY_OR_CLOSE if self._closers[-1] == "}" else _Next.VALUE_OR_CLOSE
        else:
            self.is_broken = True
            return start
        return start + 1

    def _key(self, text: str, at: int) -> int:
        if self._could_be_quote(text, at):
            return self._open_quote(text, at, _Next.KEY)
        bare = _BARE_KEY.match(text, at) if self._dialect.has_bare_keys else None
        if bare is None:
            self.is_broken = not (self._dialect.has_bare_keys and _BARE_KEY_BEGUN.match(text, at))
            return at
        self._begin(f'"{quoted(bare[1])}"', _Next.COLON)
        return bare.end()

    def _value(self, text: str, at: int, is_end: bool) -> int:
        if self._could_be_quote(text, at):
            return self._open_quote(text, at, _Next.VALUE)
        character = text[at]
        if character in _CLOSERS:
            self._begin(_IN_JSON[character], _Next.KEY_OR_CLOSE if character == "{" else _Next.VALUE_OR_CLOSE)
            self._closers.append(_CLOSERS[character])
            return at + 1
        run = _SCALAR.match(text, at)
        if run is not None and run.end() == len(text) and not is_end:
            return at
        scalar = None if run is None else _scalar(run[0])
        if run is None or scalar is None:
            self.is_broken = True
            return at
        self._begin(scalar, _Next.VALUE)
        self._end_value()
        return run.end()

    def _could_be_quote(self, text: str, at: int) -> bool:
        return any(
            text.startswith(quote, at) or quote.startswith(text[at : at + len(quote)]) for quote in self._dialect.quotes
        )

    def _open_quote(self, text: str, at: int, then: _Next) -> int:
        for quote in self._dialect.quotes:
            if text.startswith(quote, at):
                self._quote = quote
                self._begin('"', then)
                return at + len(quote)
            if quote.startswith(text[at : at + len(quote)]):
                break
        return at

    def _begin(self, text: str, then: _Next) -> None:
        self._json += f", {text}" if self._is_comma_due else text
        self._is_comma_due = False
        self._next = then

    def _end_value(self) -> None:
        self._next = _Next.COMMA_OR_CLOSE
        self.is_done = not self._closers


def _scalar(text: str) -> str | None:
    """Return a number or a word as JSON, None if it is neither."""
    if text in _WORDS or _JSON_NUMBER.fullmatch(text):
        return _WORDS.get(text, text)
    if not _DECIMAL.fullmatch(text) or len(text) > _MAX_NUMBER:
        return None
    number = text.replace("_", "")
    is_whole = number.lstrip("+-").isdigit()
    value = int(number) if is_whole else float(number)
    return json.dumps(value, allow_nan=False) if abs(value) != float("inf") else None
