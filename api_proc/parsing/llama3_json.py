"""Calls of Llama 3 and 4 as JSON objects: `{"name": "f", "parameters": {}}`, with `<|python_tag|>` before or without.

Without the tag a call begins only at the start of the output or after another call: JSON within an answer is content.
A semicolon or white space stands between calls.
"""

from collections.abc import Sequence

from api_proc.parsing.call_reader import CallReader
from api_proc.parsing.calls_in_text import CallsInText
from api_proc.parsing.json_call import JsonCall
from api_proc.parsing.piece_writer import PieceWriter
from api_proc.parsing.tools import Tool, names_of

TAG = "<|python_tag|>"
SEPARATOR = ";"


def llama3_json(tools: Sequence[Tool]) -> CallsInText:
    """Return the parser of one output with calls of `tools`."""
    return CallsInText(names_of(tools), _call, (TAG,), ("{",), SEPARATOR)


def _call(writer: PieceWriter, opening: str) -> CallReader:
    return JsonCall(writer, len(opening) if opening == TAG else 0)
