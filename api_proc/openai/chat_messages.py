"""The messages of a chat request, checked -> ChatPrompt, which the tokenizer process renders."""

from typing import Any

import msgspec

from api_proc.openai.schema import ChatRequest, Message
from api_proc.server.errors import invalid, unsupported
from quartet.wire.errors import RequestError
from quartet.wire.frames import ChatPrompt

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
"""Roles by what templates call them: `developer` is the newer name of `system`."""

EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
WITHOUT_THINKING = {"enable_thinking": False, "thinking": False}
"""What templates read that can leave the thinking out; each knows one of the names."""

MAX_NESTING = 64
"""Levels of JSON that is passed on. JSON readers recurse, and how deeply they can differs between the processes."""


def chat_prompt(chat: ChatRequest, tools: bytes | None) -> ChatPrompt:
    """Return the conversation, checked, with roles that templates know; contents are text or text parts.

    `tools` is the JSON of the functions that the prompt describes. Raises RequestError 400 with the field at fault.
    """
    if not chat.messages:
        raise invalid("messages", "messages must not be empty")
    for index, message in enumerate(chat.messages):
        _check_message(f"messages[{index}]", message)
    continues = bool(chat.continue_final_message)
    if continues and (chat.add_generation_prompt or chat.messages[-1].role != "assistant"):
        raise invalid(
            "continue_final_message",
            "continue_final_message needs a last message of the assistant and no add_generation_prompt",
        )
    if continues and chat.messages[-1].tool_calls:
        raise invalid("continue_final_message", "continue_final_message needs a last message without tool_calls")
    arguments = _template_arguments(chat)
    return ChatPrompt(
        messages=msgspec.json.encode([_shown(message) for message in chat.messages]),
        tools=tools,
        add_generation_prompt=not continues and chat.add_generation_prompt is not False,
        continue_final_message=continues,
        template_args=msgspec.json.encode(arguments) if arguments else None,
    )


def _template_arguments(chat: ChatRequest) -> dict[str, Any]:
    """Return further variables of the template; what chat_template_kwargs says goes before reasoning_effort."""
    arguments = chat.chat_template_kwargs or {}
    check_nesting("chat_template_kwargs", arguments)
    effort = chat.reasoning_effort
    if effort is None:
        return arguments
    if effort not in EFFORTS:
        raise invalid("reasoning_effort", f"reasoning_effort must be one of {', '.join(EFFORTS)}")
    return {"reasoning_effort": effort, **(WITHOUT_THINKING if effort == "none" else {}), **arguments}


def check_nesting(where: str, value: Any) -> None:
    """Raise RequestError 400, naming the field, for JSON of more than MAX_NESTING levels."""
    level = [value]
    for _ in range(MAX_NESTING + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return
    raise invalid(where, f"{where} has more than {MAX_NESTING} levels")


def _shown(message: Message) -> Message:
    """Return a message as the tokenizer process takes it: the thinking has one name, and empty fields are left out."""
    return msgspec.structs.replace(
        message,
        role=ROLES[message.role],
        content=message.content or "",
        name=message.name or None,
        tool_calls=message.tool_calls or None,
        reasoning_content=message.reasoning_content or message.reasoning or None,
        reasoning=None,
    )


def _check_message(where: str, message: Message) -> None:
    """Refuse, by the name of the field, a message that is wrong or needs an unsupported feature."""
    if message.role == "function":
        raise _legacy(f"{where}.role", "messages of the role tool")
    if message.role not in ROLES:
        raise invalid(f"{where}.role", f"{where}.role must be one of {', '.join(ROLES)}")
    if message.function_call is not None:
        raise _legacy(f"{where}.function_call", "tool_calls")
    _check_calls(where, message)
    if message.content is None and message.role != "assistant":
        raise invalid(f"{where}.content", f"{where}.content is required")
    for index, part in enumerate(message.content if isinstance(message.content, list) else ()):
        if part.type != "text":
            raise _no_text(f"{where}.content[{index}].type", part.type)
        if part.text is None:
            raise invalid(f"{where}.content[{index}].text", f"{where}.content[{index}].text is required")


def _check_calls(where: str, message: Message) -> None:
    """Refuse calls and results of calls in messages of another role than theirs."""
    if message.tool_calls and message.role != "assistant":
        raise invalid(f"{where}.tool_calls", f"{where}.tool_calls is for messages of the assistant")
    if message.tool_call_id and message.role != "tool":
        raise invalid(f"{where}.tool_call_id", f"{where}.tool_call_id is for messages of the role tool")
    for index, call in enumerate(message.tool_calls or ()):
        at = f"{where}.tool_calls[{index}]"
        if call.type not in (None, "function"):
            raise unsupported(f"{at}.type")
        if call.function is None:
            raise invalid(f"{at}.function", f"{at}.function is required")
        check_nesting(f"{at}.function.arguments", call.function.arguments)


def _legacy(where: str, instead: str) -> RequestError:
    return RequestError(400, "unsupported_parameter", f"{where} is not supported: use {instead}", where)


def _no_text(where: str, kind: str) -> RequestError:
    message = f"{where} {kind[:32]!r} is not supported: this server reads text alone, no images, audio or files"
    return RequestError(400, "unsupported_parameter", message, where)
