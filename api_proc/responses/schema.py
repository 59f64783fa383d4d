"""The request body of POST /v1/responses, as typed records."""

from typing import Any

import msgspec

from api_proc.openai.schema import SamplingFields
from api_proc.openai.translation import field_table


class Part(msgspec.Struct):
    """A part of an item's content."""

    type: str
    text: str | None = None
    refusal: str | None = None


class Item(msgspec.Struct):
    """One item of the input; without a type it is a message."""

    type: str | None = None
    role: str | None = None
    content: str | list[Part] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[Part] | dict[str, Any] | None = None


class Tool(msgspec.Struct):
    """A function of the client, or a tool that OpenAI hosts."""

    type: str
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Format(msgspec.Struct):
    """What the text of the answer has to match."""

    type: str
    name: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None
    description: str | None = None


class TextConfig(msgspec.Struct):
    """How the text of the answer is to be."""

    format: Format | None = None
    verbosity: str | None = None


class Reasoning(msgspec.Struct):
    """How much the model thinks."""

    effort: str | None = None
    summary: str | None = None
    generate_summary: str | None = None


class ResponseRequest(SamplingFields, kw_only=True):
    """Body of POST /v1/responses."""

    chat_template_kwargs: dict[str, Any] | None = None
    input: str | list[Item]
    instructions: str | None = None
    tools: list[Tool] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    max_output_tokens: int | None = None
    max_tool_calls: int | None = None
    top_logprobs: int | None = None
    include: list[str] | None = None
    metadata: dict[str, str] | None = None
    truncation: str | None = None
    safety_identifier: str | None = None


_STATE = "this server keeps no responses; send the whole input"

FIELDS = field_table(
    ResponseRequest,
    {
        "background": _STATE,
        "background_options": _STATE,
        "context_management": "send the input that the model is to see",
        "conversation": _STATE,
        "logprobs": "use include and top_logprobs",
        "messages": "use input",
        "moderation": "this server moderates nothing",
        "previous_response_id": _STATE,
        "prompt": "this server keeps no prompts; use instructions and input",
        "reasoning_effort": "use reasoning",
    },
    ("access_programs", "image", "prompt_cache_options"),
)
"""What else OpenAI's API knows."""
