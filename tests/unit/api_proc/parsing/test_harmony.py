"""Output of gpt-oss: messages by channel and recipient, in whatever pieces the output comes."""

import random
import re
from collections import Counter
from functools import partial

import pytest
from parsing_rig import TOOLS, calls_of, cut, deletions, read, text_of
from tool_corpora import corpus

from api_proc.parsing.families import HARMONY, Formats, reasoning_format, tool_format
from api_proc.parsing.harmony import HarmonyParser
from api_proc.parsing.pieces import Reasoning

START = "<|start|>assistant"
FRAME = re.compile(
    r"(<\|start\|>)?(assistant)?( ?to=\S+?)?(<\|channel\|>[^<]*)?(<\|constrain\|>\w*)?<\|message\|>|<\|(end|call)\|>"
)


@pytest.mark.parametrize(
    ("output", "reasoning", "content", "calls"),
    [
        ("<|channel|>analysis<|message|>hm\n<|end|>" + START + "<|channel|>final<|message|> Hi<|return|>",
         "hm\n", " Hi", []),
        ("<|channel|>final<|message|>Hi", "", "Hi", []),
        ("<|message|>Hi", "", "Hi", []),
        ("<|channel|>analysis<|message|>it never ends", "it never ends", "", []),
        ("<|channel|>analysis<|message|>hm<|end|>" + START + "<|chan", "hm", "", []),
        ("<|channel|>commentary<|message|>I look.<|end|>" + START
         + "<|channel|>commentary to=functions.stop <|constrain|>json<|message|>{}<|call|>",
         "", "I look.", [("stop", "{}")]),
        (" to=functions.stop<|channel|>commentary json<|message|> <|call|>", "", "", [("stop", "{}")]),
        (" to=functions.stop<|channel|>commentary json<|message|>{", "", "", [("stop", "{")]),
        ("<|channel|>commentary to=functions.stop<|message|>{} \n", "", "", [("stop", "{}")]),
        ("<|channel|>commentary to=functions.stop<|message|>{}<|start|>assistant<|channel|>final<|message|>Hi",
         "", "Hi", [("stop", "{}")]),
        ("<|channel|>commentary to=functions.stop<|message|>{} Hi<|call|>", "", " Hi<|call|>", [("stop", "{}")]),
        ("<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>analysis<|message|>b<|end|>",
         "ab", "", []),
        ("Hello there", "", "Hello there", []),
        ("assist", "", "assist", []),
        ("to be", "", "to be", []),
        ("a < b<|channel|>final<|message|>c", "", "a < bc", []),
    ],
)  # fmt: skip
def test_messages_are_read(output: str, reasoning: str, content: str, calls: list[tuple[str, str]]) -> None:
    generator = random.Random(output)
    for _ in range(40):
        found = read(partial(HarmonyParser, TOOLS, "<|start|>user<|message|>?<|end|>" + START), cut(output, generator))
        assert (text_of(found, Reasoning), text_of(found), calls_of(found)) == (reasoning, content, calls)


@pytest.mark.parametrize(
    "output",
    [
        "<|channel|>commentary to=functions.other <|constrain|>json<|message|>{}<|call|>",
        "<|channel|>analysis to=browser.search<|message|>{}<|call|>",
        "<|channel|>commentary to=functions.stop<|message|>stop it<|call|>",
        "<|channel|>commentary to=functions.stop<|message|>",
        "<|channel|>commentary to=functions.stop<|message|> [1]",
        "<|channel|>two words more<|message|>Hi",
    ],
)
def test_what_is_no_call_is_content_with_its_header(output: str) -> None:
    generator = random.Random(output)
    for _ in range(40):
        found = read(partial(HarmonyParser, TOOLS, START), cut(output, generator))
        assert (text_of(found), calls_of(found)) == (output, [])


@pytest.mark.parametrize(
    ("prompt", "reasoning", "content"),
    [
        (START + "<|channel|>final<|message|>I am", "", " fine"),
        (START + "<|channel|>analysis<|message|>", " fine", ""),
        ("", "", " fine"),
    ],
)
def test_the_prompt_shows_in_which_message_the_output_begins(prompt: str, reasoning: str, content: str) -> None:
    formats = Formats(reasoning_format(HARMONY), None)
    found = read(partial(formats.parser, [], prompt), [" fi", "ne<|end|>"])
    assert (text_of(found, Reasoning), text_of(found).removesuffix("<|end|>")) == (reasoning, content)


def test_nothing_of_a_damaged_output_is_lost() -> None:
    generator = random.Random(3)
    for output in corpus(HARMONY, 12):
        for text in deletions(output.text)[: len(output.text) - 1]:
            found = read(partial(tool_format(HARMONY).parser, TOOLS), cut(text, generator))
            kept = text_of(found) + text_of(found, Reasoning) + "".join(name + each for name, each in calls_of(found))
            lost = Counter(FRAME.sub("", text)) - Counter(kept)
            assert not "".join(lost).strip(), text
