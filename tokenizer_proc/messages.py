"""The JSON of a ChatPrompt -> what templates expect: content as text or text parts, tool call arguments as objects."""

from typing import Any

import msgspec

from quartet.wire.errors import RequestError

Message = dict[str, Any]
Content = str | list[dict[str, str]]
"""Text, or parts of which each is text."""

_REASONING_NAMES = ("reasoning_content", "thinking", "reasoning")


def invalid(message: str, param: str) -> RequestError:
    """Return the error for a field that is at fault."""
    return RequestError(400, "invalid_value", message, param)


def parse_messages(data: bytes) -> list[Message]:
    """Return the messages, each with a role and Content, without fields that are null.

    Raises RequestError 400 for anything else.
    """
    found = _decode(data, "messages")
    if not isinstance(found, list) or not all(isinstance(message, dict) for message in found):
        raise invalid("messages must be a list of objects.", "messages")
    if not found:
        raise invalid("messages must not be empty.", "messages")
    return [_message(message, f"messages[{index}]") for index, message in enumerate(found)]


def parse_tools(data: bytes | None) -> list[Any] | None:
    """Return the tools, or None if there are none; raises RequestError 400 if they are no list of objects."""
    found = None if data is None else _decode(data, "tools")
    if found is None or found == []:
        return None
    if not isinstance(found, list) or not all(isinstance(tool, dict) for tool in found):
        raise invalid("tools must be a list of objects.", "tools")
    return found


def parse_template_args(data: bytes | None, reserved: frozenset[str]) -> dict[str, Any]:
    """Return extra template variables; raises RequestError 400 for one that would replace a `reserved` name."""
    found = {} if data is None else _decode(data, "chat_template_kwargs")
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise invalid("chat_template_kwargs must be an object.", "chat_template_kwargs")
    for name in found:
        if name in reserved or name.startswith("_") or not name.isidentifier():
            raise invalid(f"chat_template_kwargs must not set {name!r}.", "chat_template_kwargs")
    return found


def _decode(data: bytes, param: str) -> Any:
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise invalid(f"{param} is not valid JSON: {error}", param) from error
    except RecursionError as error:
        raise invalid(f"{param} is nested too deeply.", param) from error


def _message(message: Message, where: str) -> Message:
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise invalid(f"{where}.role must be a non-empty string.", f"{where}.role")
    cleaned = {name: value for name, value in message.items() if value is not None}
    cleaned["content"] = _content(message.get("content"), f"{where}.content")
    if "tool_calls" in cleaned:
        cleaned["tool_calls"] = _tool_calls(cleaned["tool_calls"], f"{where}.tool_calls")
    reasoning = next((cleaned[name] for name in _REASONING_NAMES if name in cleaned), None)
    if reasoning is not None:
        # Templates read one of these names; clients know another.
        cleaned = {"thinking": reasoning, **cleaned, "reasoning_content": reasoning}
    return cleaned


def text_parts(texts: list[str]) -> list[dict[str, str]]:
    """Return `texts` as the parts of one content."""
    return [{"type": "text", "text": text} for text in texts]


def _content(content: Any, where: str) -> Content:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise invalid(f"{where} must be a string or a list of text parts.", where)
    texts = []
    for index, part in enumerate(content):
        text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
        if not isinstance(text, str):
            raise invalid(f'{where}[{index}] must be a part of type "text"; this model takes nothing else.', where)
        texts.append(text)
    return text_parts(texts)


def _tool_calls(calls: Any, where: str) -> list[Any]:
    """Decode the arguments: clients send them as a string of JSON, templates expect an object."""
    if not isinstance(calls, list):
        raise invalid(f"{where} must be a list.", where)
    decoded = []
    for index, call in enumerate(calls):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise invalid(f"{where}[{index}].function must have a name.", where)
        decoded.append({**call, "function": {**function, "arguments": _arguments(function.get("arguments"))}})
    return decoded


def _arguments(arguments: Any) -> Any:
    if not isinstance(arguments, str):
        return {} if arguments is None else arguments
    try:
        value = msgspec.json.decode(arguments)
    except (msgspec.DecodeError, RecursionError):
        return arguments
    return value if isinstance(value, dict) else arguments
