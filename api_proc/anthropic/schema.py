"""The request bodies of Anthropic's routes, as typed records.

As in OpenAI's, optional fields take null like an absent field.
"""

from typing import Any

import msgspec

from api_proc.openai.schema import SamplingFields
from api_proc.openai.translation import field_table


class Block(msgspec.Struct):
    """One block of a message or of a tool's result."""

    type: str
    text: str | None = None
    thinking: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None
    content: "str | list[Block] | dict[str, Any] | None" = None
    is_error: bool | None = None


class Turn(msgspec.Struct):
    """One message."""

    role: str
    content: str | list[Block]


class Tool(msgspec.Struct):
    """A tool of the client, or one of Anthropic's, which has a type."""

    name: str | None = None
    type: str | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    strict: bool | None = None


class ToolChoice(msgspec.Struct):
    """Whether tools are called, and which."""

    type: str
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(msgspec.Struct):
    """Whether the model thinks first, and whether the client is shown it."""

    type: str
    budget_tokens: int | None = None
    display: str | None = None


class Format(msgspec.Struct):
    """What the text of the answer has to match."""

    type: str
    schema: dict[str, Any] | None = None


class OutputConfig(msgspec.Struct):
    """How the model answers."""

    effort: str | None = None
    format: Format | None = None


class Metadata(msgspec.Struct):
    """Who asks."""

    user_id: str | None = None


class CountRequest(SamplingFields, kw_only=True):
    """Body of POST /v1/messages/count_tokens, and what a request for a message has in common with it."""

    chat_template_kwargs: dict[str, Any] | None = None
    messages: list[Turn]
    system: str | list[Block] | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: Format | None = None
    context_management: dict[str, Any] | None = None


class MessageRequest(CountRequest, kw_only=True):
    """Body of POST /v1/messages."""

    max_tokens: int
    stop_sequences: list[str] | None = None
    metadata: Metadata | None = None


FIELDS = field_table(
    MessageRequest,
    {
        "compaction": "send the conversation that the model is to see",
        "container": "this server runs no code",
        "fallbacks": "this server has one model",
        "logprobs": "chat completions have them",
        "max_completion_tokens": "use max_tokens",
        "mcp_servers": "this server calls none; give their tools in tools",
        "parallel_tool_calls": "use tool_choice",
        "reasoning_effort": "use output_config",
        "thread": "send the whole conversation",
    },
    (
        "betas",
        "billing_policy",
        "cache_control",
        "diagnostics",
        "fallback_credit_token",
        "inference_geo",
        "speed",
        "stop_sequences",
        "user_profile_id",
        "workspace_id",
    ),
)
"""What else Anthropic's API knows. `stop_sequences` has no effect on a count."""
