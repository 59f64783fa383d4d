"""The families are told apart by marks of their chat templates, and named by flags."""

from pathlib import Path

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
from api_proc.parsing.gemma4 import GEMMA4 as GEMMA4_MARKS

QWEN3_THINKING = """{%- set content = message.content.split('</think>')[-1].lstrip('\\n') %}
{{- '<tool_call>\\n{"name": "' }}{{- tool_call.name }}{{- '", "arguments": ' }}"""
QWEN3_CODER = """<tool_call>\\n<function=example_function_name>\\n<parameter=example_parameter_1>\\nvalue_1"""
LLAMA3 = """{{- "Environment: ipython\\n" }}{{- '{"name": "' + tool_call.name + '", ' }}{{- '"parameters": ' }}"""
LLAMA4 = (
    """'<|header_start|>assistant<|header_end|>\\n\\n' }}{{- '"parameters": ' }}{{- tool_call.arguments | tojson }}"""
)
GPT_OSS = """{{- "<|start|>assistant<|channel|>analysis<|message|>" + message.thinking + "<|end|>" }}"""
GEMMA4 = """{{- '<|tool_call>call:' + function['name'] + '{' -}}{{- '<|channel>thought\\n<channel|>' -}}"""

TEMPLATES = {
    "Qwen3": (QWEN3_THINKING, "think", "hermes"),
    "Qwen2.5": ("""{{- '\\n<tool_call>\\n{"name": "' }}{{- '", "arguments": ' }}""", None, "hermes"),
    "Qwen3-Coder": (QWEN3_CODER, None, "qwen3_coder"),
    "Qwen3.5": (QWEN3_CODER + "</think>", "think", "qwen3_coder"),
    "Llama-3.1": (LLAMA3, None, "llama3_json"),
    "Llama-4": (LLAMA4, None, "llama3_json"),
    "Llama-3.2, pythonic": ("Environment: ipython: [func_name1(params_name1=params_value1)", None, "pythonic"),
    "Mistral-Small": ("""{{- "[TOOL_CALLS] [" }}""", None, "mistral"),
    "Magistral": ("""{{- "[THINK]" + "[/THINK]" + "[TOOL_CALLS]" + name + "[ARGS]" }}""", "magistral", "mistral_args"),
    "gpt-oss": (GPT_OSS, "gpt_oss", "gpt_oss"),
    "Gemma 4": (GEMMA4, "gemma4", "gemma4"),
    "FunctionGemma": ("'<start_function_call>call:'", None, "function_gemma"),
    "Gemma 3 with a fence": ("use ```tool_code for a call", None, "gemma"),
    "DeepSeek-R1": ("{{'<|Assistant|><think>\\n'}}{% set content = content.split('</think>')[-1] %}", "think", None),
    "DeepSeek-V3": ("<｜tool▁sep｜>' + tool_name + '\\n' + '```json'", None, "deepseek_v3"),
    "DeepSeek-V3.1": ("tool_call_name<｜tool▁sep｜>tool_call_arguments</think>", "think", "deepseek_v31"),
    "GLM-4.5": ("<tool_call>{function-name}\\n<arg_key>{arg-key-1}</arg_key></think>", "think", "glm"),
    "Seed-OSS": ("<seed:think>", "seed_think", None),
    "Command A": ("<|START_THINKING|>", "command", None),
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
    assert set(detect(GPT_OSS).markers) >= {"<|channel|>", "<|message|>", "<|end|>", "<|call|>", "<|start|>"}
    assert set(detect(GEMMA4).markers) == {"<|channel>thought", "<|channel>", "<channel|>", *GEMMA4_MARKS}


def test_the_names_are_documented() -> None:
    page = (Path(__file__).parents[4] / "docs" / "api.md").read_text()
    for flag, names in (("tool-call", tool_format_names()), ("reasoning", reasoning_format_names())):
        table = page[page.index(f"| `--{flag}-parser`") :].partition("\n\n")[0]
        listed = [name for row in table.splitlines() for cell in row.split("|")[1:3] for name in cell.split("`")[1::2]]
        assert sorted(listed[1:]) == names
