"""Reasoning between two tags, before the content: `<think>`, `</think>` and their like.

The output begins within the reasoning if the prompt's end has opened it; otherwise the opening tag stands at the start
of the output, after 64 characters of white space at most, or there is no reasoning. An opening tag elsewhere is
content. Reasoning that never ends has no content after it.

Templates write the reasoning between line ends and an empty line before the content. So one line end is dropped at
either end of the reasoning, and two at most after the closing tag.
"""

from collections.abc import Callable

from api_proc.parsing.marks import certain_end
from api_proc.parsing.pieces import Content, OutputParser, Piece, Reasoning

_SPACE = " \t\r\n"
_AFTER_CLOSING = 2
_MAX_SPACE = 64


class PlainContent:
    """An OutputParser of output that is content alone."""

    def push(self, text: str) -> list[Piece]:
        """Return the text."""
        return [Content(text)] if text else []

    def finish(self) -> list[Piece]:
        """Return nothing: nothing is held back."""
        return []


class ThinkParser:
    """An OutputParser that gives what follows the reasoning to another.

    Args:
        opening: the tag before the reasoning.
        closing: the tag after it.
        is_open: whether the output begins within the reasoning; an opening tag is dropped there, too.
        content: reads what follows.
    """

    def __init__(self, opening: str, closing: str, is_open: bool, content: OutputParser) -> None:
        self._opening = opening
        self._closing = closing
        self._is_open = is_open
        self._content = content
        self._step: Callable[[bool], list[Piece]] = self._start
        self._held = ""
        self._is_begun = False
        self._is_over = False
        self._line_ends = _AFTER_CLOSING

    def push(self, text: str) -> list[Piece]:
        """Take the next text; return what it is certain to mean."""
        if self._step == self._after:
            return self._content.push(text)
        if not self._held and self._step == self._reasoning and self._is_plain(text):
            return [Reasoning(text)]
        self._held += text
        return self._step(False)

    def finish(self) -> list[Piece]:
        """The output has ended; return what was held back."""
        return self._step(True) + self._content.finish()

    def _is_plain(self, text: str) -> bool:
        """Whether text is thinking whatever follows: the common case, and the fast one."""
        return bool(text) and self._closing[0] not in text and "\n" not in text

    def _start(self, is_end: bool) -> list[Piece]:
        bare = self._held.lstrip(_SPACE)
        is_at_start = len(self._held) - len(bare) <= _MAX_SPACE
        if not is_end and is_at_start and self._opening.startswith(bare):
            return []
        if is_at_start and bare.startswith(self._opening):
            self._held = bare[len(self._opening) :]
        elif not self._is_open:
            self._step = self._after
            return self._after(is_end)
        self._step = self._first_line_end
        return self._step(is_end)

    def _first_line_end(self, is_end: bool) -> list[Piece]:
        if not self._held:
            return []
        self._held = self._held.removeprefix("\n")
        self._step = self._reasoning
        self._is_begun = True
        return self._reasoning(is_end)

    def _reasoning(self, is_end: bool) -> list[Piece]:
        at = self._held.find(self._closing)
        if at >= 0:
            pieces = self._take(at - 1 if self._held.startswith("\n", at - 1) and at else at)
            self._held = self._held.removeprefix("\n").removeprefix(self._closing)
            self._step = self._line_ends_after
            self._is_begun = False
            return pieces + self._line_ends_after(is_end)
        if is_end:
            return self._take(len(self._held))
        return self._take(certain_end(self._held, (self._closing, f"\n{self._closing}")))

    def _take(self, end: int) -> list[Piece]:
        text, self._held = self._held[:end], self._held[end:]
        return [Reasoning(text)] if text else []

    def _line_ends_after(self, is_end: bool) -> list[Piece]:
        while self._line_ends and self._held.startswith("\n"):
            self._held = self._held[1:]
            self._line_ends -= 1
        if self._line_ends and not self._held:
            return []
        self._step = self._after
        return self._after(is_end)

    def _after(self, is_end: bool) -> list[Piece]:
        self._is_over = True
        text, self._held = self._held, ""
        return self._content.push(text) if text else []
