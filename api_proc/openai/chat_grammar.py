"""What the output of a chat request has to match: its format, calls of tools, or either."""

import msgspec

from api_proc.openai.chat_format import ChatFormat
from api_proc.openai.schema import ChatRequest
from api_proc.openai.structured import constraint
from api_proc.openai.tools import ToolUse
from api_proc.parsing.tool_grammar import tool_grammar
from api_proc.server.errors import invalid
from quartet.wire.frames import Grammar


def chat_grammar(chat: ChatRequest, use: ToolUse | None, form: ChatFormat) -> Grammar | None:
    """Return what the output has to match after the thinking, if anything; raises RequestError 400.

    Where a tool must be called there is no content, so nothing has to follow a format of the content. Where one may be
    called, the output is calls or follows the format.
    """
    answer = constraint(chat)
    if use is None:
        return None if answer is None else _after_thinking(answer, form)
    if answer is None or use.must_call:
        return tool_grammar(form.formats, form.offered, use.must_call, use.is_single)
    calls = tool_grammar(form.formats, form.offered, True, use.is_single)
    if calls is None or bool(calls.after) != bool(form.reasoning_parser):
        raise invalid(answer.param, f"{answer.param} does not go with tools in the form in which this model calls them")
    return msgspec.structs.replace(calls, alternative=answer, param=answer.param)


def _after_thinking(grammar: Grammar, form: ChatFormat) -> Grammar:
    reasoning = form.formats.reasoning
    if reasoning is None:
        return grammar
    # Without an opening the output begins within the thinking, whatever the prompt shows.
    opening = "" if reasoning.is_always_open else reasoning.opening
    return msgspec.structs.replace(grammar, after=reasoning.closing, opening=opening)
