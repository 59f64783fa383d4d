"""Renders conversations with the model's chat template."""

import secrets
from collections.abc import Callable
from typing import Any, NamedTuple

from quartet.wire.errors import ModelError, RequestError
from quartet.wire.frames import ChatPrompt
from tokenizer_proc.content_form import ContentForms
from tokenizer_proc.messages import Message, invalid, parse_messages, parse_template_args, parse_tools
from tokenizer_proc.renderer import LocalRenderer, Renderer, RenderError
from tokenizer_proc.sandbox import DEADLINE_S, Sandbox

Guard = Callable[[Any], Any]
_RESERVED = frozenset(["messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "tokenize"])
_MAX_REASON = 200
_PROBE_NAME = "f41971693993751058209"
_PROBE = {"type": "function", "function": {"name": _PROBE_NAME, "description": "-", "parameters": {"type": "object"}}}
"""Digits, which no filter changes: a template that shows tools shows it."""
_SECONDS_PER_BYTE = 4e-6
"""Additional processor time for a long conversation."""


class SpecialNames(NamedTuple):
    """The special tokens that templates know by name, e.g. bos_token."""

    tokens: dict[str, str]


class ChatTemplate:
    """A compiled template.

    Args:
        source: jinja2 text, or None if the model has no template.
        names: special tokens by the names that templates use.
        renderer: where the template is rendered; by default in this process.

    Raises ModelError if the template cannot be compiled, or can render no conversation.
    """

    def __init__(self, source: str | None, names: SpecialNames, renderer: Renderer | None = None) -> None:
        self._names = names.tokens
        self._reserved = _RESERVED | self._names.keys() | Sandbox().globals.keys()
        self._renderer = renderer or LocalRenderer()
        self._has_template = source is not None
        if source is not None:
            try:
                self._renderer.load(source)
                self._forms = ContentForms(self._attempt)
                self._shows_tools = any(_PROBE_NAME in (self._attempt(each, [_PROBE]) or "") for each in self._small())
            except RenderError as error:
                reason = error.reason
                raise ModelError(f"the chat template is broken: {reason}; give another with --chat-template") from error

    def render(self, prompt: ChatPrompt, guard: Guard) -> str:
        """Return the prompt's text.

        `guard` is applied to every string of the client before the template is rendered. Raises RequestError 400
        for a conversation that is malformed or that the template does not accept.
        """
        if not self._has_template:
            raise RequestError(
                400,
                "no_chat_template",
                "This model has no chat template: use /v1/completions, or start the server with --chat-template.",
            )
        tools = parse_tools(prompt.tools)
        if tools and not self._shows_tools:
            raise RequestError(
                400,
                "unsupported_parameter",
                "This model's chat template does not show tools: start the server with a --chat-template that does.",
                "tools",
            )
        messages = guard([self._forms.shape(message) for message in parse_messages(prompt.messages)])
        continued = FinalMessage(messages[-1]) if prompt.continue_final_message else None
        variables = {
            **guard(parse_template_args(prompt.template_args, self._reserved)),
            **self._variables(messages),
            "tools": guard(tools),
            "add_generation_prompt": prompt.add_generation_prompt and continued is None,
        }
        text = self._run(variables, DEADLINE_S + _SECONDS_PER_BYTE * (len(prompt.messages) + len(prompt.tools or b"")))
        return text if continued is None else continued.cut(text)

    def samples(self) -> list[str]:
        """Return small conversations as the template renders them; none if there is no template."""
        if not self._has_template:
            return []
        return [text for each in self._small() if (text := self._attempt(each)) is not None]

    def _small(self) -> list[list[Message]]:
        """Return conversations of which most templates accept any."""
        turns: list[Message] = [{"role": role, "content": "-"} for role in ("system", "user", "assistant", "user")]
        return [[self._forms.shape(message) for message in each] for each in (turns, turns[1:], turns[1:2])]

    def _variables(self, messages: list[Message]) -> dict[str, Any]:
        others = {"tools": None, "documents": None, "add_generation_prompt": True}
        return {**self._names, **others, "messages": messages}

    def _attempt(self, messages: list[Message], tools: list[Any] | None = None) -> str | None:
        """Return the conversation's text, or None if the template does not accept it.

        Raises RenderError for what it would do to any conversation.
        """
        try:
            return self._renderer.render({**self._variables(messages), "tools": tools})
        except RenderError as error:
            if error.kind in ("unsafe", "too_much"):
                raise
            # It may need a conversation of another kind, or variables from the client.
            return None

    def _run(self, variables: dict[str, Any], deadline_s: float) -> str:
        try:
            return self._renderer.render(variables, deadline_s)
        except RenderError as error:
            if error.kind == "refused":
                reason = f"The model's chat template refused the conversation: {error.reason[:_MAX_REASON]}"
            elif error.kind == "failed":
                reason = f"The conversation does not fit the model's chat template ({error.reason})."
            else:
                reason = f"The conversation could not be rendered: {error.reason}."
        raise RequestError(400, "chat_template_error", reason, "messages")


class FinalMessage:
    """Marks the end of the last message's content, so that the prompt can end there and the model continues it.

    Args:
        message: the last one; the mark is put into its content.

    Raises RequestError 400 if there is no text to continue.
    """

    def __init__(self, message: Message) -> None:
        # No filter changes digits; the space shows whether the template trims.
        self._mark = f"{secrets.randbits(128):039d}"
        content = message["content"]
        if not content or (isinstance(content, list) and not content[-1]["text"]):
            raise _nothing_to_continue()
        if isinstance(content, str):
            message["content"] = f"{content}{self._mark} "
        else:
            *before, last = content
            message["content"] = [*before, {**last, "text": f"{last['text']}{self._mark} "}]

    def cut(self, text: str) -> str:
        """Return the rendered `text` up to the mark, trimmed if the template would have trimmed the content."""
        before, mark, after = text.rpartition(self._mark)
        if not mark:
            raise _nothing_to_continue()
        return before if after.startswith(" ") else before.rstrip()


def _nothing_to_continue() -> RequestError:
    return invalid("continue_final_message needs a last message whose content the template shows.", "messages")
