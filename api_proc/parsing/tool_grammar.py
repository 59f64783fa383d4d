"""What the output has to match where a tool must be called, or where calls must match their schemas.

The grammar writes calls as the model's format does, so that the parser of the same format reads them. Rules named
`marker_N` and `text_to_marker_N` are added by the tokenizer process, which knows what is a special token.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from api_proc.parsing import deepseek, gemma4, glm, harmony, hermes, mistral, qwen3_coder
from api_proc.parsing.argument_grammars import braced, keywords, tagged
from api_proc.parsing.families import HARMONY, Formats
from api_proc.parsing.lark_source import LarkSource, either, literal
from api_proc.parsing.tools import Tool
from quartet.wire.frames import Grammar


class _Syntax(NamedTuple):
    """How calls are written.

    Fields:
        call: returns the expression for a call of a tool, whose rules' names begin with the given prefix.
        opening, between, ending: what stands before the first call, between two, and after the last.
        trigger: the marker that `opening` begins with, up to which an answer may have other text; "" for a format in
            which an answer is either calls or other text.
        answer: then, other text as a regular expression, with `{names}` for the tools' names.
        markers: texts that may be special tokens.
    """

    call: Callable[[LarkSource, Tool, str], str]
    opening: str
    between: str
    ending: str = ""
    trigger: str = ""
    answer: str = ""
    markers: tuple[str, ...] = ()


def tool_grammar(formats: Formats, tools: Sequence[Tool], must_call: bool, is_single: bool) -> Grammar | None:
    """Return the grammar of an output, None if anything is allowed.

    Args:
        formats: of the model; with a tool format.
        tools: what may be called.
        must_call: whether the output is a call; otherwise it may be text, or text and then calls.
        is_single: whether there is one call at most.

    Where calls are not required, only those of strict tools have to match their schemas.
    """
    if formats.tools is None or not tools or not (must_call or any(tool.is_strict for tool in tools)):
        return None
    if not must_call:
        tools = [tool if tool.is_strict else tool._replace(parameters={}) for tool in tools]
    if formats.tools.name == HARMONY:
        lark = LarkSource((*harmony.HARMONY_MARKS,))
        lark.rule("start", _messages(lark, tools, must_call))
        return Grammar("tools", lark.source(), lark.markers, param=_param(must_call))
    syntax = _SYNTAXES[formats.tools.name]
    lark = LarkSource(syntax.markers)
    lark.rule("start", _start(lark, syntax, tools, must_call, is_single))
    after, opening = "", ""
    if formats.reasoning is not None:
        after = formats.reasoning.closing
        # Without an opening the output begins within the thinking, whatever the prompt shows.
        opening = "" if formats.reasoning.is_always_open else formats.reasoning.opening
    return Grammar("tools", lark.source(), lark.markers, after, opening, param=_param(must_call))


def _param(must_call: bool) -> str:
    return "tool_choice" if must_call else "tools"


def _start(lark: LarkSource, syntax: _Syntax, tools: Sequence[Tool], must_call: bool, is_single: bool) -> str:
    lark.rule("call", " | ".join(syntax.call(lark, tool, f"tool_{index}") for index, tool in enumerate(tools)))
    more = "" if is_single else f" ({lark.text(syntax.between)} call)*"
    calls = f"call{more} {lark.text(syntax.ending)}".rstrip()
    opening = lark.text(syntax.opening)
    if must_call:
        return f"{opening} {calls}".lstrip()
    if syntax.trigger:
        lark.rule("WITHOUT_CALL", f"TEXT & ~(TEXT {literal(syntax.trigger)} TEXT)")
        after_trigger = lark.text(syntax.opening.removeprefix(syntax.trigger))
        return f"WITHOUT_CALL | {lark.text_to(syntax.trigger)} {after_trigger} {calls}"
    names = either([literal(tool.name) for tool in tools])
    lark.rule("WITHOUT_CALL", syntax.answer.format(names=names))
    return f"WITHOUT_CALL | {opening} {calls}"


def _messages(lark: LarkSource, tools: Sequence[Tool], must_call: bool) -> str:
    """Return the messages of gpt-oss: reasoning and, if no call is required, others, then one call or the answer."""

    def message(header: str, body: str) -> str:
        return f"{lark.text(f'{harmony.CHANNEL}{header}{harmony.MESSAGE}')} {body}"

    next_one = lark.text(f"{harmony.ENDS[0]}{harmony.START}{harmony.ROLE}")
    lark.rule("reasoning", f"{message('analysis', 'TEXT')} {next_one}")
    lark.rule("preamble", f"{message('commentary', 'TEXT')} {next_one}")
    calls = [
        message(f"commentary to=functions.{tool.name} {harmony.CONSTRAIN}json", _object(lark, tool, f"tool_{index}"))
        for index, tool in enumerate(tools)
    ]
    lark.rule("call", " | ".join(calls))
    # The model ends its turn after a call, with an end-of-sequence token.
    return "reasoning* call" if must_call else f"(reasoning | preamble)* (call | {message('final', 'TEXT')})"


def _object(lark: LarkSource, tool: Tool, prefix: str) -> str:
    """Return the rule for arguments as one JSON object."""
    return lark.json(prefix, {**tool.parameters, "type": "object"}, tool.is_strict)


def _json_call(key: str) -> Callable[[LarkSource, Tool, str], str]:
    def call(lark: LarkSource, tool: Tool, prefix: str) -> str:
        beginning = f"{{{literal('name')}: {literal(tool.name)}, {literal(key)}: "
        return f"{literal(beginning)} {_object(lark, tool, prefix)} {literal('}')}"

    return call


def _named_call(lark: LarkSource, tool: Tool, prefix: str) -> str:
    return f"{lark.text(f'{tool.name}[ARGS]')} {_object(lark, tool, prefix)}"


def _python_call(lark: LarkSource, tool: Tool, prefix: str) -> str:
    return f"{literal(f'{tool.name}(')} {keywords(lark, tool, prefix)} {literal(')')}"


def _tagged_call(lark: LarkSource, tool: Tool, prefix: str) -> str:
    ending = f"\n{qwen3_coder.PARAMETER_END}\n"
    head, end = f"{qwen3_coder.FUNCTION}{tool.name}>\n", qwen3_coder.FUNCTION_END
    return f"{literal(head)} {tagged(lark, tool, prefix, _PARAMETER, ending)} {literal(end)}"


def _keyed_call(lark: LarkSource, tool: Tool, prefix: str) -> str:
    return f"{literal(tool.name + chr(10))} {tagged(lark, tool, prefix, _KEY, f'{glm.VALUE_END}{chr(10)}')}"


def _separated_call(before: str, after: str) -> Callable[[LarkSource, Tool, str], str]:
    def call(lark: LarkSource, tool: Tool, prefix: str) -> str:
        return f"{lark.text(f'{before}{tool.name}{after}')} {_object(lark, tool, prefix)}"

    return call


def _braced_call(marks: gemma4.Marks) -> Callable[[LarkSource, Tool, str], str]:
    def call(lark: LarkSource, tool: Tool, prefix: str) -> str:
        return f"{literal(f'call:{tool.name}')} {braced(lark, tool, prefix, marks.quote)}"

    return call


def _braced(marks: gemma4.Marks) -> _Syntax:
    opening, closing, _ = marks
    return _Syntax(_braced_call(marks), opening, closing + opening, closing, opening, markers=tuple(marks))


_NO_LIST = '/(?s:[^\\[].*)?/ & ~(TEXT "[" {names} "(" TEXT)'
_NO_OBJECT = '/(?s:[^\\s{{;].*)?/ & ~(TEXT "<|python_tag|>" TEXT)'
_PARAMETER = f"{qwen3_coder.PARAMETER}{{}}>\n"
_KEY = "<arg_key>{}</arg_key>\n<arg_value>"
_TOOL_CALL = (hermes.OPENING, hermes.CLOSING)
_SYNTAXES = {
    "hermes": _Syntax(
        _json_call("arguments"),
        "<tool_call>\n",
        "\n</tool_call>\n<tool_call>\n",
        "\n</tool_call>",
        *_TOOL_CALL[:1],
        markers=_TOOL_CALL,
    ),
    "qwen3_coder": _Syntax(
        _tagged_call,
        "<tool_call>\n",
        "\n</tool_call>\n<tool_call>\n",
        "\n</tool_call>",
        *_TOOL_CALL[:1],
        markers=_TOOL_CALL,
    ),
    "llama3_json": _Syntax(_json_call("parameters"), "", "; ", answer=_NO_OBJECT),
    "pythonic": _Syntax(_python_call, "[", ", ", "]", answer=_NO_LIST),
    "gemma": _Syntax(_python_call, "```tool_code\n[", ", ", "]\n```", "```tool_code", markers=("```tool_code",)),
    "mistral": _Syntax(
        _json_call("arguments"), "[TOOL_CALLS][", ", ", "]", mistral.OPENING, markers=(mistral.OPENING,)
    ),
    "mistral_args": _Syntax(
        _named_call, mistral.OPENING, mistral.OPENING, "", mistral.OPENING, markers=(mistral.OPENING, "[ARGS]")
    ),
    "glm": _Syntax(
        _keyed_call, "<tool_call>", "</tool_call>\n<tool_call>", "</tool_call>", hermes.OPENING, markers=_TOOL_CALL
    ),
    "deepseek_v31": _Syntax(
        _separated_call("", deepseek.SEPARATOR),
        f"{deepseek.CALLS}{deepseek.CALL}",
        f"{deepseek.CALL_END}{deepseek.CALL}",
        f"{deepseek.CALL_END}{deepseek.CALLS_END}",
        deepseek.CALLS,
        markers=deepseek.MARKS,
    ),
    "deepseek_v3": _Syntax(
        _separated_call(f"function{deepseek.SEPARATOR}", "\n```json\n"),
        f"{deepseek.CALLS}{deepseek.CALL}",
        f"\n```{deepseek.CALL_END}\n{deepseek.CALL}",
        f"\n```{deepseek.CALL_END}{deepseek.CALLS_END}",
        deepseek.CALLS,
        markers=deepseek.MARKS,
    ),
    "gemma4": _braced(gemma4.GEMMA4),
    "function_gemma": _braced(gemma4.FUNCTION_GEMMA),
}
