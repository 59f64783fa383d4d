"""Output of gpt-oss: messages with a header that names a channel and perhaps a recipient.

    <|channel|>analysis<|message|>They ask for...<|end|>
    <|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"city": "Paris"}<|call|>
    <|start|>assistant<|channel|>final<|message|>It rains.<|return|>

The channel `analysis` is reasoning, what goes to a function is a call, all else is content. A message to what is not
offered, and a call whose arguments are no object, are content with their header, and so is text without a header. The
end of a message may be missing: the last one's is an end-of-sequence token.
"""

import re
from collections.abc import Callable, Sequence

from api_proc.parsing.argument_stream import ArgumentStream
from api_proc.parsing.json_scanner import after_space
from api_proc.parsing.marks import certain_end, find_first
from api_proc.parsing.piece_writer import PieceWriter
from api_proc.parsing.pieces import Content, Piece, Reasoning
from api_proc.parsing.tools import Tool, names_of

START = "<|start|>"
CHANNEL = "<|channel|>"
MESSAGE = "<|message|>"
CONSTRAIN = "<|constrain|>"
ENDS = ("<|end|>", "<|call|>", "<|return|>")
HARMONY_MARKS = (START, CHANNEL, CONSTRAIN, MESSAGE, *ENDS)
_ANALYSIS = "analysis"
_STOPS = (*ENDS, START, CHANNEL)
_HEADER_MARKS = (START, CHANNEL, CONSTRAIN, MESSAGE)
_HEADER = re.compile(
    r"(?:<\|start\|>)?\s*(?:assistant)?\s*(?:to=(\S+?))?\s*"
    r"(?:<\|channel\|>\s*(\w*)\s*(?:to=([^\s<]+))?\s*(?:<\|constrain\|>)?\s*\w*\s*)?"
)
ROLE = "assistant"
_AFTER_ROLE = ("to=", CHANNEL, MESSAGE)
_FUNCTIONS = "functions."
_MAX_HEADER = 512


class HarmonyParser:
    """An OutputParser of reasoning, content and calls of `tools`.

    Args:
        prompt_text: the rendered prompt or its end, in which the first message may have begun.
    """

    def __init__(self, tools: Sequence[Tool], prompt_text: str = "") -> None:
        self._writer = PieceWriter(names_of(tools))
        self._arguments = ArgumentStream(self._writer)
        self._step: Callable[[bool], bool] = self._header
        self._held = ""
        self._seen = 0
        """No header begins in so many of the first held characters."""
        self._header_text = ""
        """The header of the message that is being read, with its mark."""
        self._name = ""
        self._is_reasoning = False
        self._is_raw = False
        self._before = prompt_text.rpartition(START)[2] if START in prompt_text else ""
        """The beginning, in the prompt, of the header that is being read."""
        header = _HEADER.fullmatch(self._before.partition(MESSAGE)[0])
        if MESSAGE in self._before and header:
            self._begin(header, "")

    def push(self, text: str) -> list[Piece]:
        """Take the next text; return what it is certain to mean."""
        if not self._held and "<" not in text and self._step == self._body:
            return [Reasoning(text) if self._is_reasoning else Content(text)] if text else []
        self._held += text
        return self._advance(False)

    def finish(self) -> list[Piece]:
        """The output has ended; return what was held back."""
        pieces = self._advance(True)
        if self._step == self._call:
            self._writer.content(self._header_text)
        return pieces + self._writer.take()

    def _advance(self, is_end: bool) -> list[Piece]:
        while self._held and self._step(is_end):
            pass
        return self._writer.take()

    def _header(self, is_end: bool) -> bool:
        end = self._held.find(MESSAGE)
        if end >= 0:
            header = _HEADER.fullmatch(self._before + self._held[:end]) if end <= _MAX_HEADER else None
            if header:
                self._begin(header, self._held[: end + len(MESSAGE)])
                self._held = self._held[end + len(MESSAGE) :]
                return True
        elif self._is_header_begun():
            if not is_end:
                return False
            if self._is_cut_header():
                self._held = ""
                return False
        self._before, self._seen = "", 1
        self._step = self._plain
        return True

    def _is_header_begun(self) -> bool:
        text = self._before + self._held
        if START.startswith(text):
            return True
        bare = text.removeprefix(START).lstrip()
        if ROLE.startswith(bare):
            return True
        bare = bare.removeprefix(ROLE).lstrip()
        return len(text) <= _MAX_HEADER and any(each.startswith(bare) or bare.startswith(each) for each in _AFTER_ROLE)

    def _is_cut_header(self) -> bool:
        """Return whether what is held is a header that the output's end cuts."""
        certain = self._before + self._held[: certain_end(self._held, _HEADER_MARKS)]
        return any(mark in self._held for mark in (START, CHANNEL)) and _HEADER.fullmatch(certain) is not None

    def _begin(self, header: re.Match[str], text: str) -> None:
        """Begin the message of that header, of which `text` belongs to the output."""
        recipient, channel = header[1] or header[3] or "", header[2]
        self._before, self._header_text = "", text
        self._name = recipient.removeprefix(_FUNCTIONS) if recipient.startswith(_FUNCTIONS) else ""
        self._is_reasoning = channel == _ANALYSIS and not recipient
        self._is_raw = bool(recipient) and self._name not in self._writer.names
        self._step = self._call if recipient and not self._is_raw else self._body
        if self._is_raw:
            self._writer.content(text)

    def _body(self, is_end: bool) -> bool:
        at, mark = find_first(self._held, _STOPS)
        if at < 0:
            self._give(len(self._held) if is_end else certain_end(self._held, _STOPS))
            return False
        self._give(at + len(mark) if self._is_raw and mark in ENDS else at)
        self._held = self._held.removeprefix(mark) if mark in ENDS and not self._is_raw else self._held
        self._step = self._header
        return True

    def _give(self, end: int) -> None:
        text, self._held = self._held[:end], self._held[end:]
        (self._writer.reasoning if self._is_reasoning else self._writer.content)(text)

    def _call(self, is_end: bool) -> bool:
        """Start the call when its arguments begin or are seen to be none."""
        bare = self._held[after_space(self._held, 0) :]
        if not is_end and any(mark.startswith(bare) and mark != bare for mark in ENDS):
            return False
        if not bare.startswith(("{", *ENDS)):
            self._writer.content(self._header_text)
            self._is_raw = True
            self._step = self._body
            return True
        self._writer.start(self._name)
        self._held = bare
        if not bare.startswith("{"):
            self._writer.arguments("{}")
            self._step = self._after_call
            return True
        self._arguments = ArgumentStream(self._writer, _STOPS)
        self._step = self._in_arguments
        return True

    def _in_arguments(self, is_end: bool) -> bool:
        end = self._arguments.read(self._held, 0, is_end)
        self._held = self._held[end:]
        if self._arguments.is_done:
            self._step = self._after_call
        return self._arguments.is_done

    def _after_call(self, is_end: bool) -> bool:
        bare = self._held[after_space(self._held, 0) :]
        _, mark = find_first(bare[:_MAX_HEADER], ENDS)
        if mark and bare.startswith(mark):
            self._held = bare.removeprefix(mark)
            self._step = self._header
            return True
        if any(stop.startswith(bare) for stop in _STOPS):
            self._held = "" if is_end else self._held
            return False
        self._seen = 0
        self._step = self._plain
        return True

    def _plain(self, is_end: bool) -> bool:
        """Give as content what has no header."""
        self._is_reasoning = False
        at, _ = find_first(self._held, (START, CHANNEL), self._seen)
        end = at
        if at < 0:
            end = len(self._held) if is_end else certain_end(self._held, (START, CHANNEL), self._seen)
        self._give(end)
        self._seen = max(0, self._seen - end)
        if at >= 0:
            self._step = self._header
        return at >= 0
