"""Reasoning between tags: what is reasoning and what is content, in whatever pieces the output comes."""

import random
from functools import partial

import pytest
from parsing_rig import TOOLS, MakeParser, calls_of, cut, deletions, read, text_of

from api_proc.parsing.families import (
    HARMONY,
    REASONING_FORMATS,
    Formats,
    ReasoningFormat,
    reasoning_format,
    tool_format,
)
from api_proc.parsing.pieces import Reasoning

THINK = reasoning_format("think")
OPENED = "<|im_start|>assistant\n<think>\n"
CLOSED = "<|im_start|>assistant\n"
CALL = '<tool_call>\n{"name": "stop", "arguments": {}}\n</tool_call>'


def maker(reasoning: ReasoningFormat, prompt: str) -> MakeParser:
    return partial(Formats(reasoning, tool_format("hermes")).parser, TOOLS, prompt)


@pytest.mark.parametrize(
    ("prompt", "output", "reasoning", "content"),
    [
        (CLOSED, "<think>\nhm\n</think>\n\nHi", "hm", "Hi"),
        (CLOSED, "\n<think>hm</think>Hi", "hm", "Hi"),
        (CLOSED, "<think>\n\n</think>\n\nHi", "", "Hi"),
        (CLOSED, "<think>\n</think>\n\n\nHi\n", "", "\nHi\n"),
        (CLOSED, "<think>\n\n a\n\nb \n\n</think>Hi", "\n a\n\nb \n", "Hi"),
        (CLOSED, "no <think>tag</think> here", "", "no <think>tag</think> here"),
        (CLOSED, "  \n", "", "  \n"),
        (CLOSED, "<thin", "", "<thin"),
        (CLOSED, "hm</think>Hi", "", "hm</think>Hi"),
        (CLOSED, "<think>it never ends </thin", "it never ends </thin", ""),
        (CLOSED, "<think>\n", "", ""),
        (CLOSED, "", "", ""),
        (OPENED, "hm\n</think>\n\nHi </think>", "hm", "Hi </think>"),
        (OPENED, "\n  hm</think>Hi", "  hm", "Hi"),
        (OPENED, "<think>\nhm</think>Hi", "hm", "Hi"),
        (OPENED, "</think>Hi", "", "Hi"),
        (OPENED, "it never ends\n", "it never ends\n", ""),
        (OPENED + "\n</think>\n\n", "Hi", "", "Hi"),
        ("what does <think> mean?<|im_end|>\n<|im_start|>assistant\n", "A tag.", "", "A tag."),
    ],
)
def test_the_reasoning_is_split_from_the_content(prompt: str, output: str, reasoning: str, content: str) -> None:
    generator = random.Random(output)
    for _ in range(30):
        found = read(maker(THINK, prompt), cut(output, generator))
        assert (text_of(found, Reasoning), text_of(found)) == (reasoning, content)
        assert [type(piece) for piece in found] == sorted({type(piece) for piece in found}, key=str, reverse=True)


@pytest.mark.parametrize(
    "reasoning", [each for each in REASONING_FORMATS if each.name != HARMONY], ids=lambda each: each.name
)
def test_every_format_is_split_before_calls(reasoning: ReasoningFormat) -> None:
    output = f"{reasoning.opening}\nhm <b> [a]\n{reasoning.closing}\n\nI stop.\n{CALL}"
    generator = random.Random(1)
    for _ in range(200):
        found = read(maker(reasoning, CLOSED), cut(output, generator))
        assert text_of(found, Reasoning) == "hm <b> [a]"
        assert text_of(found) == "I stop."
        assert calls_of(found) == [("stop", "{}")]


def test_a_model_that_always_thinks_needs_no_opening_tag() -> None:
    found = read(maker(reasoning_format("deepseek_r1"), CLOSED), ["hm</think>Hi"])
    assert (text_of(found, Reasoning), text_of(found)) == ("hm", "Hi")


def test_a_call_within_the_reasoning_is_reasoning() -> None:
    found = read(maker(THINK, OPENED), [f"I could write {CALL}\n</think>\n\n{CALL}"])
    assert (text_of(found, Reasoning), calls_of(found)) == (f"I could write {CALL}", [("stop", "{}")])


def test_nothing_of_a_damaged_output_is_lost() -> None:
    output = "<think>\nFirst, the sum\n</think>\n\nIt is 12."
    for text in deletions(output):
        found = read(maker(THINK, CLOSED), [text])
        kept = (text_of(found, Reasoning) + text_of(found)).replace("\n", "")
        whole = text.replace("\n", "")
        thought = whole.removeprefix("<think>")
        assert kept in (whole, thought, thought.replace("</think>", ""))


def test_reasoning_comes_before_its_end() -> None:
    parser = maker(THINK, CLOSED)()
    assert parser.push("<think>\nThe user") == [Reasoning("The user")]
    assert parser.push(" asks\n") == [Reasoning(" asks")]
