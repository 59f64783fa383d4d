"""Renders conversations with the model's chat template."""

from collections.abc import Callable
from datetime import datetime
from typing import Any, NamedTuple

from jinja2 import TemplateError

from quartet.wire.errors import ModelError, RequestError
from quartet.wire.frames import ChatPrompt
from tokenizer_proc.messages import Message, invalid, parse_messages, parse_template_args, parse_tools
from tokenizer_proc.sandbox import Refused, Sandbox, TooMuch, render

Guard = Callable[[Any], Any]
_RESERVED = frozenset(["messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "tokenize"])
_MAX_REASON = 200


class SpecialNames(NamedTuple):
    """The special tokens that templates know by name, e.g. bos_token."""

    tokens: dict[str, str]


class ChatTemplate:
    """A compiled template.

    Args:
        source: jinja2 text, or None if the model has no template.
        names: special tokens by the names that templates use.
        now: the local time.

    Raises ModelError if the template cannot be compiled.
    """

    def __init__(self, source: str | None, names: SpecialNames, now: Callable[[], datetime] = datetime.now) -> None:
        self._sandbox = Sandbox(now)
        self._names = names.tokens
        self._reserved = _RESERVED | self._names.keys() | self._sandbox.globals.keys()
        try:
            self._template = None if source is None else self._sandbox.from_string(source)
        except (TemplateError, RecursionError) as error:
            raise ModelError(f"the chat template is broken: {error}; give another with --chat-template") from error

    def render(self, prompt: ChatPrompt, guard: Guard) -> str:
        """Return the prompt's text.

        `guard` is applied to every string of the client before the template is rendered. Raises RequestError 400
        for a conversation that is malformed or that the template does not accept.
        """
        if self._template is None:
            raise RequestError(
                400,
                "no_chat_template",
                "This model has no chat template: use /v1/completions, or start the server with --chat-template.",
            )
        messages = guard(parse_messages(prompt.messages))
        variables = {
            **guard(parse_template_args(prompt.template_args, self._reserved)),
            **self._names,
            "messages": messages,
            "tools": guard(parse_tools(prompt.tools)),
            "documents": None,
            "add_generation_prompt": prompt.add_generation_prompt and not prompt.continue_final_message,
        }
        text = self._run(variables)
        return _cut_after_final(text, messages) if prompt.continue_final_message else text

    def _run(self, variables: dict[str, Any]) -> str:
        try:
            return render(self._sandbox, self._template, variables)
        except Refused as error:
            reason = f"The model's chat template refused the conversation: {str(error)[:_MAX_REASON]}"
        except TooMuch as error:
            reason = f"The conversation could not be rendered: {error}."
        except Exception as error:
            # An exception of the model's template fails this request alone; its text may quote the prompt.
            reason = f"The conversation does not fit the model's chat template ({type(error).__name__})."
        raise RequestError(400, "chat_template_error", reason, "messages")


def _cut_after_final(text: str, messages: list[Message]) -> str:
    """Return `text` up to the end of the last message's content, so that the model continues it."""
    content = messages[-1]["content"]
    for found in (content, content.strip()):
        at = text.rfind(found)
        if found and at >= 0:
            return text[: at + len(found)]
    raise invalid("continue_final_message needs a last message whose content the template shows.", "messages")
