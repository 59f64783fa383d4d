"""One call as a JSON object: `{"name": "f", "arguments": {"x": 1}}`, in any order, with an id or a type allowed."""

import json
from collections.abc import Callable

from api_proc.parsing.argument_stream import ArgumentStream
from api_proc.parsing.call_reader import Status
from api_proc.parsing.json_scanner import JsonScanner, after_space
from api_proc.parsing.piece_writer import PieceWriter

_NAME = "name"
_ARGUMENTS = ("arguments", "parameters")
_IGNORED = ("id", "type")


class JsonCall:
    """A CallReader of one object.

    Args:
        start: where the object begins, after white space, in the text of the first read.
        closings: marks that end a call whose arguments are no JSON; without them these end with the output.

    `is_started` says whether the call has been given out.
    """

    def __init__(self, writer: PieceWriter, start: int, closings: tuple[str, ...] = ()) -> None:
        self.status = Status.READING
        self.is_started = False
        self._writer = writer
        self._at = start
        self._given = ArgumentStream(writer, closings)
        self._step: Callable[[str, bool], bool] = self._open
        self._scanner = JsonScanner()
        self._used = 0
        self._from = 0
        """Where the key or value that is being read begins."""
        self._key = ""
        self._name = ""
        self._arguments = ""

    def read(self, text: str, is_end: bool) -> int:
        """See CallReader; a call that has started uses `text` to the arguments' end, and at last to the object's."""
        while self.status is Status.READING and self._step(text, is_end):
            pass
        if is_end and self.status is Status.READING:
            self.status = Status.BROKEN
        used, self._used = self._used, 0
        self._at -= used
        self._from -= used
        return used

    def _open(self, text: str, is_end: bool) -> bool:
        return self._symbol(text, {"{": self._key_start})

    def _key_start(self, text: str, is_end: bool) -> bool:
        return self._literal_start(text, '"', self._key_rest)

    def _key_rest(self, text: str, is_end: bool) -> bool:
        if not self._scan(text, is_end):
            return False
        self._key = json.loads(text[self._from : self._at])
        self._step = self._colon
        is_known = self._key == _NAME or self._key in _ARGUMENTS or self._key in _IGNORED
        is_repeated = (self._key == _NAME and self._name) or (self._key in _ARGUMENTS and self._has_arguments())
        return self._check(is_known and not is_repeated)

    def _colon(self, text: str, is_end: bool) -> bool:
        return self._symbol(text, {":": self._value_start})

    def _value_start(self, text: str, is_end: bool) -> bool:
        if self._key == _NAME:
            return self._literal_start(text, '"', self._name_rest)
        if self._key not in _ARGUMENTS:
            return self._literal_start(text, "", self._ignored_rest)
        if not self._literal_start(text, "{", self._arguments_rest if not self._name else self._stream):
            return False
        if self._name:
            self._start()
        return True

    def _name_rest(self, text: str, is_end: bool) -> bool:
        if not self._scan(text, is_end):
            return False
        self._name = json.loads(text[self._from : self._at])
        self._step = self._comma
        if not self._check(self._name in self._writer.names):
            return False
        if self._arguments:
            self._start()
            self._writer.arguments(self._arguments)
            self._used = self._at
        return True

    def _arguments_rest(self, text: str, is_end: bool) -> bool:
        """Read arguments that stand before the name."""
        if not self._scan(text, is_end):
            return False
        self._arguments = text[self._from : self._at]
        self._step = self._comma
        return True

    def _ignored_rest(self, text: str, is_end: bool) -> bool:
        self._step = self._comma if self._scan(text, is_end) else self._step
        return self._scanner.is_done

    def _stream(self, text: str, is_end: bool) -> bool:
        """Give out arguments as they come."""
        self._at = self._given.read(text, self._at, is_end)
        self._used = self._at
        if self._given.is_done:
            self._step = self._comma
            # What follows arguments that are no JSON is the call's end.
            self.status = Status.DONE if self._given.is_broken or (is_end and self._at == len(text)) else self.status
        return self._given.is_done

    def _comma(self, text: str, is_end: bool) -> bool:
        return self._symbol(text, {",": self._key_start, "}": self._close})

    def _close(self, text: str, is_end: bool) -> bool:
        if self._check(bool(self._name)):
            if not self.is_started:
                self._start()
                self._writer.arguments("{}")
            self._used = self._at
            self.status = Status.DONE
        return False

    def _start(self) -> None:
        self.is_started = True
        self._writer.start(self._name)

    def _has_arguments(self) -> bool:
        return self.is_started or bool(self._arguments)

    def _next(self, text: str) -> str:
        """Skip white space; return the next character, "" if it has not come."""
        self._at = after_space(text, self._at)
        return text[self._at : self._at + 1]

    def _symbol(self, text: str, steps: dict[str, Callable[[str, bool], bool]]) -> bool:
        character = self._next(text)
        if not character or not self._check(character in steps):
            return False
        self._at += 1
        self._step = steps[character]
        return True

    def _literal_start(self, text: str, first: str, step: Callable[[str, bool], bool]) -> bool:
        """Go on to read a value that has to begin with `first`, if that is given."""
        character = self._next(text)
        if not character or not self._check(not first or character == first):
            return False
        self._from = self._at
        self._scanner = JsonScanner()
        self._step = step
        return True

    def _scan(self, text: str, is_end: bool) -> bool:
        """Return whether a value that is held until it is complete is."""
        self._at = self._scanner.scan(text, self._at, is_end)
        return self._check(not self._scanner.is_broken) and self._scanner.is_done

    def _check(self, is_right: bool) -> bool:
        if not is_right:
            self.status = Status.BROKEN
        return is_right
