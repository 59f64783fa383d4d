"""Every format: outputs are read, in whatever pieces they come, and what is no call comes back as content."""

import json
import random
from functools import partial

import pytest
from parsing_rig import (
    TOOLS,
    MakeParser,
    calls_of,
    cut,
    deletions,
    read,
    text_of,
)
from tool_corpora import WRITERS, corpus

from api_proc.parsing.families import TOOL_FORMATS, tool_format

NAMES = sorted(WRITERS)
CALLS_IN_TEXT = [name for name in NAMES if name != "gpt_oss"]
"""Formats in which a text without a call is content from its first character to its last."""


def maker(name: str) -> MakeParser:
    return partial(tool_format(name).parser, TOOLS)


def test_every_format_has_a_corpus() -> None:
    assert {each.name for each in TOOL_FORMATS} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_read(name: str) -> None:
    for output in corpus(name, 200):
        found = read(maker(name), [output.text])
        assert [(call, json.loads(text)) for call, text in calls_of(found)] == output.calls, output.text
        assert text_of(found) == output.content, output.text


@pytest.mark.parametrize("name", NAMES)
def test_pieces_do_not_depend_on_cuts(name: str) -> None:
    splits(name, 300)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_pieces_do_not_depend_on_ten_thousand_cuts(name: str) -> None:
    splits(name, 10_000)


def splits(name: str, count: int) -> None:
    generator = random.Random(count)
    outputs = [output.text for output in corpus(name, 100)]
    broken = [text[:at] + text[at + generator.randrange(4) :] for text in outputs for at in (len(text) // 3,)]
    wholes = {text: read(maker(name), [text]) for text in outputs + broken}
    for _ in range(count):
        text = generator.choice(outputs + broken)
        pieces = cut(text, generator)
        assert read(maker(name), pieces) == wholes[text], pieces


@pytest.mark.parametrize("name", CALLS_IN_TEXT)
def test_nothing_of_a_damaged_output_is_lost(name: str) -> None:
    losses(name, 7)


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS_IN_TEXT)
def test_nothing_of_many_damaged_outputs_is_lost(name: str) -> None:
    losses(name, 80)


def losses(name: str, count: int) -> None:
    """Every output without one character, and every beginning: without a call the content is the text."""
    generator = random.Random(count)
    for output in corpus(name, count):
        for text in deletions(output.text):
            found = read(maker(name), cut(text, generator))
            if not calls_of(found):
                assert text_of(found) == text


@pytest.mark.parametrize("name", CALLS_IN_TEXT)
def test_a_call_of_an_unknown_tool_is_content(name: str) -> None:
    for output in corpus(name, 60):
        found = read(partial(tool_format(name).parser, [TOOLS[1]._replace(name="other")]), [output.text])
        assert (calls_of(found), text_of(found)) == ([], output.text)


@pytest.mark.parametrize(
    ("name", "output", "arguments", "content"),
    [
        ("hermes", '<tool_call>\n{"name": "stop", "arguments": {"a": 1}\n</tool_call>', '{"a": 1}', ""),
        ("hermes", '<tool_call>\n{"name": "stop", "arguments": {"a": 1}}}\n</tool_call>\n', '{"a": 1}', ""),
        ("hermes", '<tool_call>\n{"name": "stop", "arguments": {"a": 1}}', '{"a": 1}', ""),
        ("hermes", '<tool_call>\n{"name": "stop", "arguments": {"a" 1}}\n</tool_call> x', '{"a" 1}}\n', " x"),
        ("hermes", '<tool_call>\n{"name": "stop", "arguments": {"a": "\\u12', '{"a": "', ""),
        ("hermes", '<tool_call>\n{"name": "stop"}\n</tool_call>', "{}", ""),
        ("hermes", 'a\n\n<tool_call>\n{"name": "stop"}\n</tool_call>\n\nb', "{}", "a\n\nb"),
        ("qwen3_coder", "<function=stop>\n</function>\n</tool_call>", "{}", ""),
        ("qwen3_coder", "<tool_call>\n<function=stop>\n<parameter=a>\nx", '{"a": ', "\nx"),
        ("llama3_json", '{"type": "function", "name": "stop", "parameters": {}}; ', "{}", ""),
        ("llama3_json", '{"name": "stop", "parameters": {}}; and more', "{}", "; and more"),
        ("pythonic", "see [a](b), [stop()]", "{}", "see [a](b),"),
        ("mistral", '[TOOL_CALLS][{"name": "stop", "arguments": {}}, {"name": "x"}]', "{}", ', {"name": "x"}]'),
        ("gemma4", "<|tool_call>call:stop{}", "{}", ""),
    ],
)
def test_small_mistakes_of_models(name: str, output: str, arguments: str, content: str) -> None:
    generator = random.Random(output)
    for _ in range(20):
        found = read(maker(name), cut(output, generator))
        assert (calls_of(found), text_of(found)) == ([("stop", arguments)], content)
