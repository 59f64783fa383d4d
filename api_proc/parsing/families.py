"""The families of models: how they write reasoning and calls of tools, and how a chat template shows it."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from api_proc.parsing.deepseek import MARKS as DEEPSEEK
from api_proc.parsing.deepseek import deepseek
from api_proc.parsing.gemma import gemma
from api_proc.parsing.gemma4 import FUNCTION_GEMMA, GEMMA4, function_gemma, gemma4
from api_proc.parsing.glm import glm
from api_proc.parsing.harmony import CHANNEL, HARMONY_MARKS, MESSAGE, HarmonyParser
from api_proc.parsing.hermes import hermes
from api_proc.parsing.llama3_json import llama3_json
from api_proc.parsing.mistral import mistral
from api_proc.parsing.pieces import OutputParser
from api_proc.parsing.pythonic import pythonic
from api_proc.parsing.qwen3_coder import qwen3_coder
from api_proc.parsing.think import PlainContent, ThinkParser
from api_proc.parsing.tools import Tool

HARMONY = "gpt_oss"
"""The format in which reasoning and calls are messages of one kind: one parser reads both."""
_TAIL = 256
"""Characters at the end of a prompt that can show whether the reasoning is open."""


class ToolFormat(NamedTuple):
    """How a model writes calls of tools.

    Fields:
        name: as `--tool-call-parser` takes it.
        marks: alternatives of literal texts which, all together in a chat template, show this format.
        parser: makes the parser of one output.
        special: texts of the format that are special tokens of its models, which the detokenizer has to show.
    """

    name: str
    marks: tuple[tuple[str, ...], ...]
    parser: Callable[[Sequence[Tool]], OutputParser]
    special: tuple[str, ...] = ()


class ReasoningFormat(NamedTuple):
    """How a model writes its reasoning.

    Fields:
        name: as `--reasoning-parser` takes it.
        marks: alternatives of literal texts which, all together in a chat template, show this format.
        opening: the tag before the reasoning.
        closing: the text after which the content begins; a grammar of the content starts there.
        is_always_open: whether outputs begin within the reasoning though the prompt does not show it.
        special: further texts of the format that are special tokens, as of ToolFormat.
    """

    name: str
    marks: tuple[tuple[str, ...], ...]
    opening: str
    closing: str
    is_always_open: bool = False
    special: tuple[str, ...] = ()

    def is_thinking_open(self, prompt_text: str) -> bool:
        """Return whether the output begins within the reasoning."""
        return self.is_always_open or prompt_text[-_TAIL:].rstrip().endswith(self.opening)


class Formats(NamedTuple):
    """What a model's output can hold beside content."""

    reasoning: ReasoningFormat | None = None
    tools: ToolFormat | None = None

    @property
    def markers(self) -> tuple[str, ...]:
        """What parsers look for that may be special tokens, which the detokenizer has to show."""
        reasoning, tools = self
        tags = (reasoning.opening, reasoning.closing, *reasoning.special) if reasoning else ()
        return tuple(dict.fromkeys(tags + (tools.special if tools else ())))

    def parser(self, tools: Sequence[Tool], prompt_text: str) -> OutputParser:
        """Return the parser of one output.

        Args:
            tools: what may be called; without any, calls are content.
            prompt_text: the rendered prompt, or its end.
        """
        if any(each is not None and each.name == HARMONY for each in self):
            return HarmonyParser(tools, prompt_text)
        content = self.tools.parser(tools) if self.tools and tools else PlainContent()
        if self.reasoning is None:
            return content
        is_open = self.reasoning.is_thinking_open(prompt_text)
        return ThinkParser(self.reasoning.opening, self.reasoning.closing, is_open, content)


TOOL_FORMATS = (
    ToolFormat(HARMONY, ((CHANNEL, MESSAGE),), HarmonyParser, HARMONY_MARKS),
    ToolFormat("mistral_args", (("[TOOL_CALLS]", "[ARGS]"),), mistral, ("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]")),
    ToolFormat("mistral", (("[TOOL_CALLS]",),), mistral, ("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]")),
    ToolFormat("gemma4", (("<|tool_call>call:",),), gemma4, GEMMA4),
    ToolFormat("function_gemma", (("<start_function_call>",),), function_gemma, FUNCTION_GEMMA),
    ToolFormat("qwen3_coder", (("<function=", "<parameter="),), qwen3_coder),
    ToolFormat("glm", (("<tool_call>", "<arg_key>"),), glm),
    ToolFormat("deepseek_v3", (("<｜tool▁sep｜>", "```json"),), deepseek, DEEPSEEK),
    ToolFormat("deepseek_v31", (("<｜tool▁sep｜>",),), deepseek, DEEPSEEK),
    ToolFormat("hermes", (("<tool_call>",),), hermes),
    ToolFormat("gemma", (("tool_code",),), gemma),
    ToolFormat("pythonic", (("[func_name1(",),), pythonic),
    ToolFormat(
        "llama3_json",
        (("Environment: ipython", '"parameters": '), ("<|header_start|>", '"parameters": ')),
        llama3_json,
        ("<|python_tag|>",),
    ),
)
"""In the order in which a template is compared with them."""

REASONING_FORMATS = (
    ReasoningFormat(
        HARMONY, ((CHANNEL, MESSAGE),), f"{CHANNEL}analysis{MESSAGE}", f"{CHANNEL}final{MESSAGE}", special=HARMONY_MARKS
    ),
    ReasoningFormat("seed_think", (("<seed:think>",),), "<seed:think>", "</seed:think>"),
    ReasoningFormat("magistral", (("[THINK]",),), "[THINK]", "[/THINK]"),
    ReasoningFormat("command", (("<|START_THINKING|>",),), "<|START_THINKING|>", "<|END_THINKING|>"),
    ReasoningFormat(
        "gemma4", (("<|channel>", "<channel|>"),), "<|channel>thought", "<channel|>", special=("<|channel>",)
    ),
    ReasoningFormat("thinking", (("</thinking>",),), "<thinking>", "</thinking>"),
    ReasoningFormat("think", (("</think>",),), "<think>", "</think>"),
    ReasoningFormat("deepseek_r1", (), "<think>", "</think>", is_always_open=True),
)
"""In the order in which a template is compared with them; one without marks is chosen by its name alone."""

_ALIASES = {
    "qwen": "hermes",
    "qwen25": "hermes",
    "openai": "gpt_oss",
    "gpt-oss": "gpt_oss",
    "gemma3": "gemma",
    "functiongemma": "function_gemma",
    "glm45": "glm",
    "glm47": "glm",
    "deepseekv3": "deepseek_v3",
    "deepseekv31": "deepseek_v31",
    "qwen3_xml": "qwen3_coder",
    "llama3": "llama3_json",
    "llama4_json": "llama3_json",
    "llama4_pythonic": "pythonic",
}
"""Other engines' names of the tool formats."""

_REASONING_ALIASES = {
    "qwen3": "think",
    "openai_gptoss": "gpt_oss",
    "gpt-oss": "gpt_oss",
    "glm45": "think",
    "deepseek-r1": "deepseek_r1",
    "deepseek_v3": "think",
    "cohere_command3": "command",
    "mistral": "magistral",
    "seed_oss": "seed_think",
}
"""Other engines' names of the reasoning formats."""


def tool_format_names() -> list[str]:
    """Return what `--tool-call-parser` takes."""
    return sorted({*(each.name for each in TOOL_FORMATS), *_ALIASES})


def reasoning_format_names() -> list[str]:
    """Return what `--reasoning-parser` takes."""
    return sorted({*(each.name for each in REASONING_FORMATS), *_REASONING_ALIASES})


def tool_format(name: str) -> ToolFormat:
    """Return the format with that name; raises KeyError."""
    return {each.name: each for each in TOOL_FORMATS}[_ALIASES.get(name, name)]


def reasoning_format(name: str) -> ReasoningFormat:
    """Return the format with that name; raises KeyError."""
    return {each.name: each for each in REASONING_FORMATS}[_REASONING_ALIASES.get(name, name)]


def detect(template: str | None) -> Formats:
    """Return the formats that a chat template shows; None for one that it does not show."""
    text = template or ""
    return Formats(
        next((each for each in REASONING_FORMATS if _shows(text, each.marks)), None),
        next((each for each in TOOL_FORMATS if _shows(text, each.marks)), None),
    )


def _shows(text: str, alternatives: tuple[tuple[str, ...], ...]) -> bool:
    return any(all(mark in text for mark in marks) for marks in alternatives)
