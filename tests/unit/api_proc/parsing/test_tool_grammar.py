"""Grammars of calls: whatever a model writes under one, the parser of the same format reads calls that fit the schemas.

Outputs are random walks over the tokens that the grammar allows: bytes, and the format's markers as special tokens.
"""

import json
import random

import pytest
from grammar_rig import ENDING, NAMES, TOOLS, Walk, accepts, compiled, fits, grammar_of
from parsing_rig import calls_of, text_of

from api_proc.parsing.families import Formats, reasoning_format, tool_format
from api_proc.parsing.tool_grammar import tool_grammar
from api_proc.parsing.tools import Tool
from tokenizer_proc.grammars import GrammarError


@pytest.mark.parametrize("name", NAMES)
def test_what_a_grammar_allows_is_read_as_calls_that_fit(name: str) -> None:
    walks(name, 12)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_much_that_a_grammar_allows_is_read_as_calls_that_fit(name: str) -> None:
    walks(name, 500)


def walks(name: str, count: int) -> None:
    generator = random.Random(count)
    source = compiled(grammar_of(name, must_call=True))
    schemas = {tool.name: tool.parameters for tool in TOOLS}
    numbers = set()
    for _ in range(count):
        text = Walk(source, generator).text()
        parser = tool_format(name).parser(TOOLS)
        found = parser.push(text) + parser.finish()
        calls = calls_of(found)
        assert calls and not text_of(found), text
        for call, arguments in calls:
            assert fits(json.loads(arguments), dict(schemas[call]), dict(schemas[call])), (text, arguments)
        numbers.add(len(calls))
    assert name == "gpt_oss" or max(numbers) > 1


@pytest.mark.parametrize("name", NAMES)
def test_a_single_call_and_a_named_one(name: str) -> None:
    generator = random.Random(1)
    source = compiled(grammar_of(name, must_call=True, is_single=True, tools=TOOLS[1:]))
    for _ in range(5):
        text = Walk(source, generator).text()
        parser = tool_format(name).parser(TOOLS)
        ((call, arguments),) = calls_of(parser.push(text) + parser.finish())
        assert (call, json.loads(arguments)) == ("stop", {}), text


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("has_special", [True, False])
def test_an_answer_may_be_text_but_its_calls_fit(name: str, has_special: bool) -> None:
    if not has_special and name == "gpt_oss":
        pytest.skip("messages need the special tokens")
    generator = random.Random(2)
    schemas = {tool.name: dict(tool.parameters) for tool in TOOLS}
    source = compiled(grammar_of(name, must_call=False), has_special)
    kinds = set()
    for _ in range(12):
        opening = tool_format(name).special[:1] or ("<tool_call>",)
        text = Walk(source, generator, (*opening, *ENDING)).text()
        parser = tool_format(name).parser(TOOLS)
        found = parser.push(text) + parser.finish()
        for call, arguments in calls_of(found):
            assert fits(json.loads(arguments), schemas[call], schemas[call]), (text, arguments)
        assert calls_of(found) or name == "gpt_oss" or text_of(found) == text
        kinds.add(bool(calls_of(found)))
    assert False in kinds


OUTPUTS = {
    "hermes": '<tool_call>\n{{"name": "{}", "arguments": {{}}}}\n</tool_call>',
    "qwen3_coder": "<tool_call>\n<function={}>\n</function>\n</tool_call>",
    "llama3_json": '{{"name": "{}", "parameters": {{}}}}',
    "mistral": '[TOOL_CALLS][{{"name": "{}", "arguments": {{}}}}]',
    "mistral_args": "[TOOL_CALLS]{}[ARGS]{{}}",
    "pythonic": "[{}()]",
    "gemma": "```tool_code\n[{}()]\n```",
    "glm": "<tool_call>{}\n</tool_call>",
    "deepseek_v31": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>{}<｜tool▁sep｜>{{}}"
    "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    "deepseek_v3": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>{}\n```json\n{{}}\n```"
    "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    "gemma4": "<|tool_call>call:{}{{}}<tool_call|>",
    "function_gemma": "<start_function_call>call:{}{{}}<end_function_call>",
    "gpt_oss": "<|channel|>commentary to=functions.{} <|constrain|>json<|message|>{{}}",
}
LISTS = ("gpt_oss", "pythonic", "gemma", "mistral", "deepseek_v3", "deepseek_v31")
"""Formats in which two calls are not one output after another."""
TEXTS = ("pythonic",)
"""Formats in which no call follows other text."""


@pytest.mark.parametrize("name", NAMES)
def test_what_is_allowed_and_what_is_not(name: str) -> None:
    call, unknown, incomplete = (OUTPUTS[name].format(each) for each in ("stop", "other", "get_weather"))
    auto = compiled(grammar_of(name, must_call=False))
    must = compiled(grammar_of(name, must_call=True))
    text = "<|channel|>final<|message|>It is 12 < 13." if name == "gpt_oss" else "It is 12 < 13.\n\n"
    preamble = "<|channel|>commentary<|message|>So.<|end|><|start|>assistant" if name == "gpt_oss" else text
    assert accepts(auto, text)
    assert accepts(auto, call)
    assert accepts(auto, preamble + call) == (name not in TEXTS)
    assert not any(accepts(auto, each) for each in (unknown, incomplete, f"{call} and more"))
    assert accepts(must, call)
    assert not any(accepts(must, each) for each in ("", text, preamble + text, unknown, incomplete))


@pytest.mark.parametrize("name", [name for name in NAMES if name not in LISTS])
def test_one_call_and_no_more(name: str) -> None:
    call = OUTPUTS[name].format("stop")
    between = {"hermes": "\n", "qwen3_coder": "\n", "glm": "\n", "llama3_json": "; "}.get(name, "")
    for must_call in (True, False):
        assert accepts(compiled(grammar_of(name, must_call)), call + between + call)
        assert not accepts(compiled(grammar_of(name, must_call, is_single=True)), call + between + call)


def test_only_calls_that_are_enforced_need_a_grammar() -> None:
    formats = Formats(None, tool_format("hermes"))
    loose = [tool._replace(is_strict=False) for tool in TOOLS]
    assert tool_grammar(formats, loose, False, False) is None
    assert tool_grammar(formats, [], True, False) is None
    assert tool_grammar(Formats(), TOOLS, True, False) is None
    mixed = tool_grammar(formats, [loose[0], TOOLS[1]], False, False)
    assert mixed is not None and "get_weather" in mixed.source and "city" not in mixed.source


def test_a_grammar_begins_after_the_thinking() -> None:
    formats = Formats(reasoning_format("think"), tool_format("hermes"))
    grammar = tool_grammar(formats, TOOLS, True, False)
    assert grammar is not None
    assert (grammar.after, grammar.opening, grammar.param) == ("</think>", "<think>", "tool_choice")
    always = tool_grammar(formats._replace(reasoning=reasoning_format("deepseek_r1")), TOOLS, False, False)
    assert always is not None
    assert (always.after, always.opening, always.param) == ("</think>", "", "tools")


@pytest.mark.parametrize("name", NAMES)
def test_what_cannot_be_enforced_is_refused_for_strict_tools_alone(name: str) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True, "format": "odd"}}}
    loose = Tool("f", schema)
    compiled(grammar_of(name, must_call=True, tools=(loose,)))
    if name not in ("gemma4", "function_gemma"):
        with pytest.raises(GrammarError, match="uniqueItems"):
            compiled(grammar_of(name, must_call=True, tools=(loose._replace(is_strict=True),)))


def test_strings_without_quotes_keep_their_bounds() -> None:
    schema = {
        "type": "object",
        "properties": {
            "path": {"type": "string", "pattern": "^/[a-z/]+$", "maxLength": 9},
            "part": {"type": "string", "pattern": "x+"},
        },
        "required": ["path"],
    }
    source = compiled(grammar_of("qwen3_coder", must_call=True, tools=(Tool("f", schema, is_strict=True),)))
    output = "<tool_call>\n<function=f>\n<parameter=path>\n{}\n</parameter>\n{}</function>\n</tool_call>"
    assert accepts(source, output.format("/usr/lib", ""))
    assert not any(accepts(source, output.format(path, "")) for path in ("usr", "/usr/lib/python", "/usr\n"))
    assert accepts(source, output.format("/a", "<parameter=part>\n1x2\n</parameter>\n"))
    assert not accepts(source, output.format("/a", "<parameter=part>\n12\n</parameter>\n"))
