"""The request bodies of the OpenAI routes, as typed records.

Every optional field takes null like an absent field; unknown fields are accepted and ignored, except those of
`api_proc.openai.other_fields`. Fields that are known
but not served yet are decoded as `Any`, so that `api_proc.openai.unsupported` can refuse them by name; so are those
that `api_proc.openai.structured` reads, which take values of several shapes.
"""

from typing import Any

import msgspec


class StreamOptions(msgspec.Struct):
    """What a stream carries besides the text."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class ContentPart(msgspec.Struct, omit_defaults=True):
    """One part of a message; only `text` is served."""

    type: str
    text: str | None = None


class CalledFunction(msgspec.Struct, omit_defaults=True):
    """What a call of a tool calls; `arguments` is JSON, as text or as the object itself."""

    name: str
    arguments: str | dict[str, Any] = ""


class ToolCall(msgspec.Struct, omit_defaults=True):
    """A call in a message of the assistant."""

    function: CalledFunction | None = None
    id: str | None = None
    type: str | None = None


class Message(msgspec.Struct, omit_defaults=True):
    """One turn of a conversation. Clients know the assistant's thinking by either of two names."""

    role: str
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    function_call: Any = None


class Function(msgspec.Struct, omit_defaults=True):
    """A function that the model may call; `parameters` is a JSON schema."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(msgspec.Struct, omit_defaults=True):
    """Something that the model may use; only functions are served."""

    type: str
    function: Function | None = None


class SamplingFields(msgspec.Struct, kw_only=True):
    """What chat and completion requests have in common."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    priority: int | None = None
    timeout: float | None = None
    first_token_timeout: float | None = None
    cache_salt: str | None = None
    routing_key: str | None = None
    prompt_cache_key: str | None = None
    session_id: str | None = None
    user: str | None = None
    service_tier: str | None = None
    request_id: str | None = None
    rid: str | None = None
    no_stop_trim: bool | None = None
    weight: float | None = None
    return_token_ids: bool | None = None
    prompt_logprobs: int | None = None
    use_beam_search: Any = None
    bad_words: Any = None
    allowed_token_ids: Any = None
    logits_processors: Any = None
    truncate_prompt_tokens: Any = None
    skip_reading_prefix_cache: Any = None
    response_format: Any = None
    structured_outputs: Any = None
    json_schema: Any = None
    regex: Any = None
    ebnf: Any = None
    grammar: Any = None
    choice: Any = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None
    guided_whitespace_pattern: Any = None
    structural_tag: Any = None
    prompt_embeds: Any = None
    multi_modal_data: Any = None
    chat_template: Any = None


class ChatRequest(SamplingFields, kw_only=True):
    """Body of POST /v1/chat/completions."""

    messages: list[Message]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    echo: Any = None
    add_special_tokens: Any = None
    tools: list[Tool] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    functions: Any = None
    function_call: Any = None
    modalities: Any = None
    audio: Any = None


class CompletionRequest(SamplingFields, kw_only=True):
    """Body of POST /v1/completions."""

    prompt: str | list[str | int | list[int]]
    echo: bool | None = None
    add_special_tokens: bool | None = None
    logprobs: int | None = None
    suffix: Any = None
    best_of: int | None = None
