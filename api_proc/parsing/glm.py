"""Calls of GLM-4.5 and later: tags for keys and values, with the values as plain text.

    <tool_call>f
    <arg_key>city</arg_key>
    <arg_value>Paris</arg_value>
    </tool_call>

Values are typed by the tool's schema. What follows a mistake is content.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from api_proc.parsing.call_reader import CallReader, Status, read_by_steps
from api_proc.parsing.calls_in_text import CallsInText
from api_proc.parsing.literals import quoted
from api_proc.parsing.piece_writer import PieceWriter
from api_proc.parsing.schema_types import property_types
from api_proc.parsing.tools import Tool, names_of
from api_proc.parsing.typed_value import TypedValue

OPENING = "<tool_call>"
CLOSING = "</tool_call>"
VALUE_END = "</arg_value>"
_TAG_BEGUN = r"<[/a-z_]{0,11}"
_NAME = re.compile(r"\s{0,8}([^\s<>]{1,256})\s{0,8}(?=<arg_key>|</tool_call>)")
_NAME_BEGUN = re.compile(rf"\s{{0,8}}[^\s<>]{{0,256}}\s{{0,8}}(?:{_TAG_BEGUN})?\Z")
_KEY = re.compile(r"\s{0,8}<arg_key>([^<\n]{1,256})</arg_key>\s{0,8}<arg_value>")
_KEY_BEGUN = re.compile(
    rf"\s{{0,8}}(?:{_TAG_BEGUN}|<arg_key>[^<\n]{{0,256}}(?:{_TAG_BEGUN}|</arg_key>\s{{0,8}}(?:{_TAG_BEGUN})?)?)?\Z"
)
_END = re.compile(rf"\s{{0,8}}{CLOSING}")


def glm(tools: Sequence[Tool]) -> CallsInText:
    """Return the parser of one output with calls of `tools`."""
    schemas = {tool.name: tool.parameters for tool in tools}

    def reader(writer: PieceWriter, opening: str) -> CallReader:
        return _KeyedCall(writer, schemas)

    return CallsInText(names_of(tools), reader, (OPENING,))


class _KeyedCall:
    """A CallReader of one call.

    Args:
        schemas: of the parameters, by the tools' names.
    """

    def __init__(self, writer: PieceWriter, schemas: Mapping[str, Mapping[str, Any]]) -> None:
        self.status = Status.READING
        self._writer = writer
        self._schemas = schemas
        self._name = ""
        self.at = len(OPENING)
        self._separator = ""
        self._value: TypedValue | None = None

    def read(self, text: str, is_end: bool) -> int:
        """See CallReader."""
        return read_by_steps(self, text, is_end)

    @property
    def is_started(self) -> bool:
        """See SteppedReader."""
        return bool(self._name)

    def step(self, text: str, is_end: bool) -> bool:
        """See SteppedReader."""
        if not self._name:
            return self._start(text)
        if self._value is None:
            return self._key(text)
        self.at = self._value.read(text, self.at)
        is_done = self._value.is_done
        self._value = None if is_done else self._value
        return is_done

    def _start(self, text: str) -> bool:
        name = _NAME.match(text, self.at)
        if name is None or name[1] not in self._writer.names:
            is_possible = name is None and _NAME_BEGUN.match(text, self.at)
            self.status = Status.READING if is_possible else Status.BROKEN
            return False
        self._name, self.at = name[1], name.end()
        self._writer.start(self._name)
        self._writer.arguments("{")
        return True

    def _key(self, text: str) -> bool:
        key, end = _KEY.match(text, self.at), _END.match(text, self.at)
        if key is not None:
            self._writer.arguments(f'{self._separator}"{quoted(key[1])}": ')
            self._separator, self.at = ", ", key.end()
            types = property_types(self._schemas[self._name], key[1])
            self._value = TypedValue(self._writer, types, VALUE_END, has_lines=False)
            return True
        if end is not None:
            self._writer.arguments("}")
            self.at = end.end()
            self.status = Status.DONE
        elif not _KEY_BEGUN.match(text, self.at):
            self.status = Status.BROKEN
        return False
