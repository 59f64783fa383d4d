"""Outputs that repeat themselves without end, as models do: each piece costs about the same, however much came before.

Times are of the processor, with room for a machine that does other work.
"""

import random
import time
from functools import partial

import pytest
from parsing_rig import MakeParser, cut, read

from api_proc.parsing.families import TOOL_FORMATS, Formats, reasoning_format, tool_format
from api_proc.parsing.tools import Tool

NAMES = [each.name for each in TOOL_FORMATS]
TOOLS = (Tool("f", {"properties": {"a": {"type": "string"}}}),)
LENGTH = 20_000
LIMIT_S = 3.0
REPEATED = (
    ("", "\n"), ("", "<"), ("", "["), ("", "{"), ("", "[f("), ("[f(a=", "["), ("[f(a='", "\\"), ("[f(a=", "1"),
    ("[f(a=1, ", "b"), ("[f(a=1", " "), ("", "```json\n{"), ('{"name": "', "x"),
    ('{"name": "f", "parameters": {"a": ', "["),
    ("", "<tool_call>"), ('<tool_call>\n{"name": "', "x"), ('<tool_call>\n{"arguments": {"a": "', "x"),
    ("<tool_call>\n<function=", "x"), ("<tool_call>\n<function=f>\n<parameter=a>\n", "\n</paramete"),
    ("", "[TOOL_CALLS]"), ("[TOOL_CALLS]", "x"), ("[TOOL_CALLS]f[CALL_ID]", "x"), ("<|tool_call>call:", "x"),
    ("<|tool_call>call:f{", "x"), ('<|tool_call>call:f{a:<|"|>', '<|"|'), ("", "<|channel|>"),
    ("", "<|start|>assistant<|channel|>analysis to=functions.f"), ("<|channel|>final<|message|>", "<|"),
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_no_repetition_costs_more_and_more(name: str) -> None:
    for beginning, repeated in REPEATED:
        check(partial(tool_format(name).parser, TOOLS), beginning + repeated * (LENGTH // len(repeated)))


@pytest.mark.parametrize(
    ("beginning", "repeated"), [("", " "), ("", "<think>"), ("<think>", "\n"), ("<think>", "</thin")]
)
def test_no_repetition_within_reasoning_does(beginning: str, repeated: str) -> None:
    formats = Formats(reasoning_format("think"), None)
    check(partial(formats.parser, [], ""), beginning + repeated * (LENGTH // len(repeated)))


def check(make: MakeParser, text: str) -> None:
    begin_s = time.process_time()
    parser = make()
    for at in range(0, len(text), 4):
        parser.push(text[at : at + 4])
    parser.finish()
    spent_s = time.process_time() - begin_s
    assert spent_s < LIMIT_S, text[:40]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", [63, 64, 65, 200])
def test_long_runs_of_space_do_not_depend_on_cuts(name: str, count: int) -> None:
    generator = random.Random(count)
    call = {"hermes": '<tool_call>{"name": "f", "arguments": {}}</tool_call>', "pythonic": "[f()]"}
    call |= {"llama3_json": '{"name": "f", "parameters": {}}', "gemma4": "<|tool_call>call:f{}<tool_call|>"}
    one = call.get(name, "[TOOL_CALLS]f{}")
    space = "\n " * (count // 2) + "\n" * (count % 2)
    for text in (space, space + one, f"a{space}{one}{space}", f"{one}{space}{one}", f"{one}{space}b"):
        make = partial(tool_format(name).parser, TOOLS)
        whole = read(make, [text])
        assert all(read(make, cut(text, generator)) == whole for _ in range(20))
