"""The tools of a chat request, checked: which are shown to the model, and which it may or must call."""

import re
from typing import Any, NamedTuple

import msgspec

from api_proc.openai.chat_messages import check_nesting
from api_proc.openai.schema import ChatRequest, Function, Tool
from api_proc.server.errors import invalid
from quartet.wire.errors import RequestError

MAX_TOOLS = 128
MAX_NAME = 64
NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}}

_NAME = re.compile(rf"[A-Za-z0-9_.-]{{1,{MAX_NAME}}}")


class ToolUse(NamedTuple):
    """What the model may do with tools.

    `shown` are the functions that the prompt describes, `callable` those of them that may be called. `must_call`:
    there is no answer without a call. `is_named`: the client has named the one to call, which is called once.
    `is_single`: one call at most.
    """

    shown: list[Function]
    callable: list[Function]
    must_call: bool = False
    is_named: bool = False
    is_single: bool = False

    def described(self) -> bytes:
        """Return the shown functions as JSON, as chat templates expect them."""
        return msgspec.json.encode([_described(function) for function in self.shown])


def tool_use(chat: ChatRequest) -> ToolUse | None:
    """Return the use of tools that a request allows, None if it is none; raises RequestError 400.

    With the choice `none` tools are not shown to the model, which could call them otherwise.
    """
    functions = [_function(f"tools[{index}]", tool) for index, tool in enumerate(chat.tools or ())]
    _check_names(functions)
    choice, is_single = chat.tool_choice, chat.parallel_tool_calls is False
    if isinstance(choice, dict):
        return _chosen(functions, choice, is_single)
    if choice not in (None, "auto", "none", "required"):
        raise invalid("tool_choice", "tool_choice must be auto, none, required, or an object that names a function")
    if choice == "required" and not functions:
        raise invalid("tool_choice", "tool_choice is required, but there are no tools")
    if choice == "none" or not functions:
        return None
    return ToolUse(functions, functions, choice == "required", is_single=is_single)


def _chosen(functions: list[Function], choice: dict[str, Any], is_single: bool) -> ToolUse:
    """Return what a tool_choice that is an object allows: one named function, or some of them."""
    kind, by_name = choice.get("type"), {function.name: function for function in functions}
    if kind == "function":
        only = _named("tool_choice", choice, by_name)
        return ToolUse(functions, [only], must_call=True, is_named=True, is_single=True)
    if kind != "allowed_tools":
        raise _only("tool_choice.type", kind, "function and allowed_tools")
    allowed = choice.get("allowed_tools")
    where = "tool_choice.allowed_tools"
    if not isinstance(allowed, dict) or allowed.get("mode") not in ("auto", "required"):
        raise invalid(f"{where}.mode", f"{where}.mode must be auto or required")
    tools = allowed.get("tools")
    if not isinstance(tools, list) or not tools:
        raise invalid(f"{where}.tools", f"{where}.tools must be a list of at least one tool")
    # The model is shown no others: it might call them.
    named = [_named(f"{where}.tools[{index}]", tool, by_name) for index, tool in enumerate(tools)]
    return ToolUse(named, named, allowed["mode"] == "required", is_single=is_single)


def _named(where: str, choice: Any, by_name: dict[str, Function]) -> Function:
    """Return the function that `{"type": "function", "function": {"name": ...}}` names."""
    function = choice.get("function") if isinstance(choice, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str):
        raise invalid(f"{where}.function.name", f"{where}.function.name is required")
    if name not in by_name:
        raise invalid(f"{where}.function.name", f"{where}.function.name is none of the tools")
    return by_name[name]


def _function(where: str, tool: Tool) -> Function:
    if tool.type != "function":
        raise _only(f"{where}.type", tool.type, "function")
    function = tool.function
    if function is None:
        raise invalid(f"{where}.function", f"{where}.function is required")
    if not _NAME.fullmatch(function.name):
        at = f"{where}.function.name"
        raise invalid(at, f"{at} must have 1 to {MAX_NAME} characters of a-z, A-Z, 0-9, underscore, dot and hyphen")
    if function.parameters and function.parameters.get("type", "object") != "object":
        raise invalid(f"{where}.function.parameters", f"{where}.function.parameters must be a schema of type object")
    check_nesting(f"{where}.function.parameters", function.parameters)
    return function


def _check_names(functions: list[Function]) -> None:
    if len(functions) > MAX_TOOLS:
        raise invalid("tools", f"tools has more than {MAX_TOOLS} entries")
    names = [function.name for function in functions]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise invalid(f"tools[{index}].function.name", f"tools has two functions of the name {name}")


def _described(function: Function) -> dict[str, Any]:
    shown = msgspec.structs.replace(function, parameters=function.parameters or NO_PARAMETERS, strict=None)
    return {"type": "function", "function": shown}


def _only(where: str, given: Any, served: str) -> RequestError:
    return RequestError(400, "unsupported_parameter", f"{where} {given!r} is not supported: only {served}", where)
