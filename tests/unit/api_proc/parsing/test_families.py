"""The families are told apart by marks of their chat templates, and named by flags."""

import pytest

from api_proc.parsing.families import (
    REASONING_FORMATS,
    TOOL_FORMATS,
    detect,
    reasoning_format,
    reasoning_format_names,
    tool_format,
    tool_format_names,
)

QWEN3_THINKING = """{%- set content = message.content.split('</think>')[-1].lstrip('\\n') %}
{{- '<tool_call>\\n{"name": "' }}{{- tool_call.name }}{{- '", "arguments": ' }}"""

TEMPLATES = {
    "Qwen3": (QWEN3_THINKING, "think", "hermes"),
    "Qwen2.5": ("""{{- '\\n<tool_call>\\n{"name": "' }}{{- '", "arguments": ' }}""", None, "hermes"),
    "SmolLM2": ("{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>'}}", None, None),
}
"""Of each model's template the part that writes calls and reasoning; the formats' names."""


@pytest.mark.parametrize("model", TEMPLATES)
def test_formats_are_seen_in_the_template(model: str) -> None:
    template, reasoning, tools = TEMPLATES[model]
    found = detect(template)
    assert (found.reasoning and found.reasoning.name, found.tools and found.tools.name) == (reasoning, tools)


def test_a_model_without_a_template_has_no_formats() -> None:
    assert detect(None) == (None, None)


def test_every_name_that_a_flag_takes_is_a_format() -> None:
    assert {tool_format(name).name for name in tool_format_names()} == {each.name for each in TOOL_FORMATS}
    names = {reasoning_format(name).name for name in reasoning_format_names()}
    assert names == {each.name for each in REASONING_FORMATS}
    with pytest.raises(KeyError):
        tool_format("llama")


def test_special_tokens_are_shown_where_a_format_needs_them() -> None:
    assert detect(QWEN3_THINKING).markers == ("<think>", "</think>")
    assert detect("[THINK][TOOL_CALLS]").markers == ("[THINK]", "[/THINK]", "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]")
