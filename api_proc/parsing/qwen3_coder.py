"""Calls of Qwen3-Coder and Qwen3.5 and later: tags, with the values of arguments as plain text.

    <tool_call>
    <function=f>
    <parameter=city>
    Paris
    </parameter>
    </function>
    </tool_call>

Outer tags may be missing, the first one alone, too. Values are typed by the tool's schema. What follows a mistake is
content.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from api_proc.parsing.call_reader import Status, read_by_steps
from api_proc.parsing.calls_in_text import CallsInText
from api_proc.parsing.json_scanner import after_space
from api_proc.parsing.literals import quoted
from api_proc.parsing.piece_writer import PieceWriter
from api_proc.parsing.schema_types import property_types
from api_proc.parsing.tools import Tool, names_of
from api_proc.parsing.typed_value import TypedValue

OPENING = "<tool_call>"
CLOSING = "</tool_call>"
FUNCTION = "<function="
PARAMETER = "<parameter="
PARAMETER_END = "</parameter>"
FUNCTION_END = "</function>"
_MAX_NAME = 256


def qwen3_coder(tools: Sequence[Tool]) -> CallsInText:
    """Return the parser of one output with calls of `tools`."""
    schemas = {tool.name: tool.parameters for tool in tools}
    return CallsInText(names_of(tools), lambda writer, opening: _XmlCall(writer, opening, schemas), (OPENING, FUNCTION))


class _XmlCall:
    """A CallReader of one function with its tags.

    Args:
        schemas: of the parameters, by the tools' names.
    """

    def __init__(self, writer: PieceWriter, opening: str, schemas: Mapping[str, Mapping[str, Any]]) -> None:
        self.status = Status.READING
        self._writer = writer
        self._schemas = schemas
        self.at = len(OPENING) if opening == OPENING else 0
        self.step: Callable[[str, bool], bool] = self._function
        self._name = ""
        self.is_started = False
        self._separator = ""
        self._value: TypedValue | None = None

    def read(self, text: str, is_end: bool) -> int:
        """See CallReader."""
        return read_by_steps(self, text, is_end)

    def _function(self, text: str, is_end: bool) -> bool:
        self.at = after_space(text, self.at)
        name = self._tag(text, FUNCTION)
        if not name or not self._check(name in self._writer.names):
            return False
        self._name = name
        self.step = self._first_tag
        return True

    def _first_tag(self, text: str, is_end: bool) -> bool:
        """Start the call when its arguments begin or are seen to be none."""
        self.at = after_space(text, self.at)
        if not self._one_of(text, (PARAMETER, FUNCTION_END)):
            return False
        self.is_started = True
        self._writer.start(self._name)
        self._writer.arguments("{")
        self.step = self._parameter
        return True

    def _parameter(self, text: str, is_end: bool) -> bool:
        after = after_space(text, self.at)
        if text.startswith(FUNCTION_END, after):
            self._writer.arguments("}")
            self.at = after + len(FUNCTION_END)
            self.step = self._end
            return True
        at, self.at = self.at, after
        key = self._tag(text, PARAMETER) if self._one_of(text, (PARAMETER, FUNCTION_END)) else ""
        if not key:
            self.at = at
            return False
        self._writer.arguments(f'{self._separator}"{quoted(key)}": ')
        self._separator = ", "
        types = property_types(self._schemas[self._name], key)
        self._value = TypedValue(self._writer, types, PARAMETER_END, has_lines=True)
        self.step = self._in_value
        return True

    def _in_value(self, text: str, is_end: bool) -> bool:
        assert self._value is not None
        self.at = self._value.read(text, self.at)
        if self._value.is_done:
            self.step = self._parameter
        return self._value.is_done

    def _end(self, text: str, is_end: bool) -> bool:
        after = after_space(text, self.at)
        is_closed = text.startswith(CLOSING, after)
        if not is_closed and CLOSING.startswith(text[after:]):
            self.at = len(text) if is_end else self.at
            self.status = Status.DONE if is_end else Status.READING
            return False
        if is_closed:
            self.at = after + len(CLOSING)
        self.status = Status.DONE
        return False

    def _tag(self, text: str, tag: str) -> str:
        """Read e.g. `<function=f>` and return `f`, "" if it is not complete."""
        if not self._one_of(text, (tag,)):
            return ""
        start = self.at + len(tag)
        end = text.find(">", start)
        name = text[start : end if end >= 0 else len(text)]
        if not self._check(len(name) <= _MAX_NAME and "\n" not in name and "<" not in name and end != start) or end < 0:
            return ""
        self.at = end + 1
        return name

    def _one_of(self, text: str, tags: tuple[str, ...]) -> bool:
        """Return whether one of `tags` stands here; none, and none that may have begun, breaks the call."""
        if text.startswith(tags, self.at):
            return True
        rest = text[self.at : self.at + _MAX_NAME]
        self._check(any(tag.startswith(rest) for tag in tags))
        return False

    def _check(self, is_right: bool) -> bool:
        if not is_right:
            self.status = Status.BROKEN
        return is_right
