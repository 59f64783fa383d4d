"""Anthropic's request bodies -> chats: system text, blocks, tools, thinking; what is not served is refused by name."""

import hashlib
from typing import Any

from api_proc.anthropic.schema import Block, CountRequest, Format, MessageRequest, Tool, ToolChoice, Turn
from api_proc.openai.routing import MAX_KEY_CHARACTERS
from api_proc.openai.schema import ChatRequest
from api_proc.openai.translation import Names, Turns, chat_of, same_fields
from api_proc.server.errors import invalid
from quartet.wire.errors import RequestError

BILLING_HEADER = "x-anthropic-billing-header"
"""Begins a line of the system text in which a client names itself. It differs from request to request, so that no
prefix of the prompt could be found in the cache."""

ERROR = "Error: "
"""Put before the text of a tool's result that is an error, which chat templates cannot say otherwise."""

NAMES: Names = (
    (r"stop", "stop_sequences"),
    (r"continue_final_message", "messages"),
    (r"tools\[(\d+)\]\.function\.parameters", r"tools[\1].input_schema"),
    (r"tools\[(\d+)\]\.function", r"tools[\1]"),
    (r"tool_choice\.function", "tool_choice"),
    (r"parallel_tool_calls", "tool_choice.disable_parallel_tool_use"),
    (r"reasoning_effort", "output_config.effort"),
    (r"response_format(\.json_schema)?(\.schema)?", "output_config.format.schema"),
)
"""What the fields of a chat are called here."""

_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
_THINKING = {"enabled": True, "adaptive": True, "disabled": False}


def chat_request(wanted: CountRequest) -> tuple[ChatRequest, Names]:
    """Return a conversation as a chat, and what its fields are called in the request.

    Raises RequestError 400 with the field at fault.
    """
    turns = Turns(merged=frozenset({"system", "user", "assistant"}))
    _add_system(turns, wanted.system)
    for index, turn in enumerate(wanted.messages):
        _add_turn(turns, f"messages[{index}]", turn)
    messages = turns.messages
    fields = same_fields(wanted) | {"messages": messages} | _tools(wanted) | _thinking(wanted)
    if messages and messages[-1]["role"] == "assistant":
        _check_prefill(wanted.messages)
        fields |= {"continue_final_message": True, "add_generation_prompt": False}
    if (format_ := _format(wanted)) is not None:
        fields["response_format"] = format_
    if isinstance(wanted, MessageRequest):
        fields |= _of_message(wanted)
    return chat_of(fields), (*turns.names, *NAMES)


def _of_message(wanted: MessageRequest) -> dict[str, Any]:
    if wanted.service_tier not in (None, "auto", "standard_only"):
        raise invalid("service_tier", "service_tier must be auto or standard_only")
    # Both tiers are the server's default; OpenAI's have other names.
    fields: dict[str, Any] = {"max_tokens": wanted.max_tokens, "service_tier": None}
    if wanted.stop_sequences is not None:
        fields["stop"] = wanted.stop_sequences
    user = wanted.metadata.user_id if wanted.metadata else None
    if user and not wanted.routing_key:
        is_short = len(user) <= MAX_KEY_CHARACTERS
        fields["routing_key"] = user if is_short else hashlib.sha256(user.encode()).hexdigest()
    return fields


# Messages


def _add_system(turns: Turns, system: str | list[Block] | None) -> None:
    blocks = [Block("text", system)] if isinstance(system, str) else system or []
    for index, block in enumerate(blocks):
        text = _text(f"system[{index}]", block)
        kept = _without_billing_header(text)
        if kept or not text:
            turns.texts("system", [kept], "system")


def _without_billing_header(text: str) -> str:
    if BILLING_HEADER not in text:
        return text
    lines = text.splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith(BILLING_HEADER))


def _add_turn(turns: Turns, where: str, turn: Turn) -> None:
    if turn.role not in ("user", "assistant", "system"):
        raise invalid(f"{where}.role", f"{where}.role must be user or assistant")
    blocks = [Block("text", turn.content)] if isinstance(turn.content, str) else turn.content
    if not blocks and turn.role != "assistant":
        raise invalid(f"{where}.content", f"{where}.content must not be empty")
    for index, block in enumerate(blocks):
        _add_block(turns, turn.role, f"{where}.content[{index}]", where, block)


def _add_block(turns: Turns, role: str, at: str, where: str, block: Block) -> None:
    match block.type, role:
        case "tool_result", "user":
            turns.result(_required(at, "tool_use_id", block.tool_use_id), _result(at, block), where)
        case "tool_use", "assistant":
            call_id, name = _required(at, "id", block.id), _required(at, "name", block.name)
            turns.call(call_id, name, block.input or {}, where, f"{at}.input")
        case "thinking", "assistant":
            turns.reasoning(_required(at, "thinking", block.thinking), where)
        case "redacted_thinking", "assistant":
            pass  # Encrypted for the server that wrote it; no model here has seen its text.
        case _:
            turns.texts(role, [_text(at, block)], where)


def _text(at: str, block: Block) -> str:
    if block.type != "text":
        message = f"{at}: a block of type {block.type} is not supported here; this server runs models that read text"
        raise RequestError(400, "unsupported_parameter", message, at)
    return _required(at, "text", block.text)


def _required(at: str, name: str, value: str | None) -> str:
    if value is None:
        raise invalid(f"{at}.{name}", f"{at}.{name} is required")
    return value


def _result(at: str, block: Block) -> list[str]:
    """Return the texts of a tool's result."""
    content: Any = block.content
    if isinstance(content, dict):
        raise invalid(f"{at}.content", f"{at}.content must be a string or a list of blocks")
    if isinstance(content, list):
        texts = [_text(f"{at}.content[{index}]", one) for index, one in enumerate(content)]
    else:
        texts = [content or ""]
    return [ERROR + "".join(texts[:1]), *texts[1:]] if block.is_error else texts


def _check_prefill(messages: list[Turn]) -> None:
    content = messages[-1].content
    if isinstance(content, list) and any(block.type == "tool_use" for block in content):
        where = f"messages[{len(messages) - 1}]"
        raise invalid(where, f"{where}: a block of type tool_use must be followed by its tool_result")


# What else the model is told


def _tools(wanted: CountRequest) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if wanted.tools:
        fields["tools"] = [_tool(f"tools[{index}]", tool) for index, tool in enumerate(wanted.tools)]
    if wanted.tool_choice is not None:
        fields |= _choice(wanted.tool_choice)
    return fields


def _tool(where: str, tool: Tool) -> dict[str, Any]:
    if tool.type not in (None, "custom"):
        message = f"{where}.type: {tool.type} is a tool of Anthropic's; this server has tools of the client alone"
        raise RequestError(400, "unsupported_parameter", message, f"{where}.type")
    if tool.input_schema is None:
        raise invalid(f"{where}.input_schema", f"{where}.input_schema is required")
    function = {
        "name": _required(where, "name", tool.name),
        "description": tool.description,
        "parameters": tool.input_schema,
        "strict": tool.strict,
    }
    return {"type": "function", "function": function}


def _choice(choice: ToolChoice) -> dict[str, Any]:
    fields: dict[str, Any] = {"parallel_tool_calls": False} if choice.disable_parallel_tool_use else {}
    if choice.type == "tool":
        name = _required("tool_choice", "name", choice.name)
        return fields | {"tool_choice": {"type": "function", "function": {"name": name}}}
    if choice.type not in _CHOICES:
        raise invalid("tool_choice.type", "tool_choice.type must be auto, any, tool or none")
    return fields | {"tool_choice": _CHOICES[choice.type]}


def _thinking(wanted: CountRequest) -> dict[str, Any]:
    fields: dict[str, Any] = {"chat_template_kwargs": wanted.chat_template_kwargs}
    if wanted.thinking is not None:
        if wanted.thinking.type not in _THINKING:
            raise invalid("thinking.type", f"thinking.type must be one of {', '.join(_THINKING)}")
        if wanted.thinking.display not in (None, "summarized", "omitted"):
            raise invalid("thinking.display", "thinking.display must be summarized or omitted")
        variables = {"enable_thinking": _THINKING[wanted.thinking.type]} | (wanted.chat_template_kwargs or {})
        fields["chat_template_kwargs"] = variables
    if wanted.output_config is not None and wanted.output_config.effort is not None:
        fields["reasoning_effort"] = wanted.output_config.effort
    return fields


def _format(wanted: CountRequest) -> dict[str, Any] | None:
    where, format_ = "output_format", wanted.output_format
    if wanted.output_config is not None and wanted.output_config.format is not None:
        where, format_ = "output_config.format", wanted.output_config.format
    return None if format_ is None else _response_format(where, format_)


def _response_format(where: str, wanted: Format) -> dict[str, Any]:
    if wanted.type != "json_schema":
        raise invalid(f"{where}.type", f"{where}.type must be json_schema")
    if wanted.schema is None:
        raise invalid(f"{where}.schema", f"{where}.schema is required")
    return {"type": "json_schema", "json_schema": {"name": "output", "schema": wanted.schema, "strict": True}}
