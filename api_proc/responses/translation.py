"""Bodies of POST /v1/responses -> chats; what needs state or tools of the server is refused by name."""

from typing import Any

from api_proc.openai.schema import ChatRequest
from api_proc.openai.translation import Names, Turns, chat_of, same_fields
from api_proc.responses.schema import Format, Item, Part, ResponseRequest, Tool
from api_proc.server.errors import invalid, unsupported
from quartet.wire.errors import RequestError

INCLUDED = ("message.output_text.logprobs", "reasoning.encrypted_content")
"""What `include` may name. The text of reasoning is in its items anyway; it is not encrypted."""
LOGPROBS = INCLUDED[0]
MAX_METADATA = 16

NAMES: Names = (
    (r"max_completion_tokens", "max_output_tokens"),
    (r"messages", "input"),
    (r"tools\[(\d+)\]\.function", r"tools[\1]"),
    (r"tool_choice\.function", "tool_choice"),
    (r"tool_choice\.allowed_tools", "tool_choice"),
    (r"reasoning_effort", "reasoning.effort"),
    (r"response_format(\.json_schema)?", "text.format"),
)
"""What the fields of a chat are called here."""


def chat_request(wanted: ResponseRequest, may_truncate: bool) -> tuple[ChatRequest, Names]:
    """Return the input as a chat, and what its fields are called in the request.

    `may_truncate`: prompts that are too long are cut. Raises RequestError 400 with the field at fault.
    """
    _check_rest(wanted, may_truncate)
    turns = Turns(merged=frozenset({"system", "assistant"}))
    if wanted.instructions:
        turns.texts("system", [wanted.instructions], "instructions")
    items = [Item(role="user", content=wanted.input)] if isinstance(wanted.input, str) else wanted.input
    for index, item in enumerate(items):
        _add_item(turns, f"input[{index}]", item)
    fields = same_fields(wanted) | {"messages": turns.messages} | _tools(wanted) | _text(wanted)
    fields["chat_template_kwargs"] = wanted.chat_template_kwargs
    if wanted.reasoning is not None:
        fields["reasoning_effort"] = wanted.reasoning.effort
    fields["max_completion_tokens"] = wanted.max_output_tokens
    fields["logprobs"] = has_logprobs(wanted)
    fields["top_logprobs"] = wanted.top_logprobs
    return chat_of(fields), (*turns.names, *NAMES)


def has_logprobs(wanted: ResponseRequest) -> bool:
    """Return whether the answer carries log-probabilities."""
    return bool(wanted.top_logprobs) or LOGPROBS in (wanted.include or ())


def _check_rest(wanted: ResponseRequest, may_truncate: bool) -> None:
    """Refuse values that are known and not served."""
    for index, name in enumerate(wanted.include or ()):
        if name not in INCLUDED:
            raise _only(f"include[{index}]", name, " and ".join(INCLUDED))
    if wanted.truncation not in (None, "disabled", "auto"):
        raise invalid("truncation", "truncation must be disabled or auto")
    if wanted.truncation == "auto" and not may_truncate:
        raise unsupported("truncation")
    if len(wanted.metadata or ()) > MAX_METADATA:
        raise invalid("metadata", f"metadata has more than {MAX_METADATA} entries")
    if wanted.text is not None and wanted.text.verbosity not in (None, "medium"):
        raise _only("text.verbosity", wanted.text.verbosity, "medium")


# Input


def _add_item(turns: Turns, where: str, item: Item) -> None:
    match item.type:
        case None | "message":
            role = "system" if item.role == "developer" else item.role
            if role not in ("system", "user", "assistant"):
                raise invalid(f"{where}.role", f"{where}.role must be user, assistant, system or developer")
            turns.texts(role, _texts(f"{where}.content", item.content), where)
        case "function_call":
            call_id, name = _required(where, "call_id", item.call_id), _required(where, "name", item.name)
            turns.call(call_id, name, _required(where, "arguments", item.arguments), where, f"{where}.arguments")
        case "function_call_output":
            turns.result(_required(where, "call_id", item.call_id), _texts(f"{where}.output", item.output), where)
        case "reasoning":
            # Without content it is encrypted for the server that wrote it, or a summary, which the model has not made.
            turns.reasoning("".join(_texts(f"{where}.content", item.content or [])), where)
        case _:
            served = "message, function_call, function_call_output and reasoning"
            raise _only(f"{where}.type", item.type, served)


def _texts(where: str, content: str | list[Part] | dict[str, Any] | None) -> list[str]:
    if isinstance(content, str):
        return [content]
    if not isinstance(content, list):
        raise invalid(where, f"{where} must be a string or a list of parts")
    return [_part(f"{where}[{index}]", part) for index, part in enumerate(content)]


def _part(where: str, part: Part) -> str:
    text = part.refusal if part.type == "refusal" else part.text
    if part.type not in ("input_text", "output_text", "text", "refusal", "reasoning_text", "summary_text"):
        message = f"{where}: a part of type {part.type} is not supported here; this server runs models that read text"
        raise RequestError(400, "unsupported_parameter", message, where)
    return _required(where, "text", text)


def _required(where: str, name: str, value: str | None) -> str:
    if value is None:
        raise invalid(f"{where}.{name}", f"{where}.{name} is required")
    return value


# What else the model is told


def _tools(wanted: ResponseRequest) -> dict[str, Any]:
    fields: dict[str, Any] = {"parallel_tool_calls": wanted.parallel_tool_calls}
    if wanted.tools:
        fields["tools"] = [_tool(f"tools[{index}]", tool) for index, tool in enumerate(wanted.tools)]
    fields["tool_choice"] = _choice(wanted.tool_choice)
    return fields


def _tool(where: str, tool: Tool) -> dict[str, Any]:
    if tool.type != "function":
        raise _only(f"{where}.type", tool.type, "function")
    function = {
        "name": _required(where, "name", tool.name),
        "description": tool.description,
        "parameters": tool.parameters,
        "strict": tool.strict,
    }
    return {"type": "function", "function": function}


def _choice(choice: str | dict[str, Any] | None) -> str | dict[str, Any] | None:
    """Return the choice in the shape that it has in chats, where a function's name lies one level deeper."""
    if not isinstance(choice, dict):
        return choice
    match choice.get("type"):
        case "function":
            return {"type": "function", "function": {"name": choice.get("name")}}
        case "allowed_tools":
            tools = choice.get("tools")
            allowed = {"mode": choice.get("mode"), "tools": tools}
            if isinstance(tools, list):
                allowed["tools"] = [_choice(tool) if isinstance(tool, dict) else tool for tool in tools]
            return {"type": "allowed_tools", "allowed_tools": allowed}
        case other:
            raise _only("tool_choice.type", other, "function and allowed_tools")


def _text(wanted: ResponseRequest) -> dict[str, Any]:
    format_ = wanted.text.format if wanted.text is not None else None
    return {} if format_ is None else {"response_format": _response_format(format_)}


def _response_format(wanted: Format) -> dict[str, Any]:
    if wanted.type != "json_schema":
        return {"type": wanted.type}
    if wanted.schema is None:
        raise invalid("text.format.schema", "text.format.schema is required")
    schema = {"name": wanted.name or "output", "schema": wanted.schema, "strict": wanted.strict}
    return {"type": "json_schema", "json_schema": schema}


def _only(where: str, given: Any, served: str) -> RequestError:
    message = f"{where} {given!r} is not supported: this server has {served} only"
    return RequestError(400, "unsupported_parameter", message, where)
