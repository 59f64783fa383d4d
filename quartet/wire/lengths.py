"""How long a prompt may be (rule LEN-1): one margin and one message for every process that refuses a longer one."""

from quartet.wire.errors import RequestError

MARGIN_TOKENS = 5
"""A prompt with one output token must leave more than this many tokens of the context."""


def is_too_long(context_length: int, prompt_tokens: int) -> bool:
    """Return whether a prompt does not fit into the model's context."""
    return prompt_tokens >= context_length - 1 - MARGIN_TOKENS


def context_length_exceeded(context_length: int, prompt_tokens: int | str, param: str) -> RequestError:
    """Return the 400 for a prompt that does not fit into the model's context.

    `prompt_tokens` is the prompt's length, or `more than N` where it was not encoded to its end.
    """
    return RequestError(
        400,
        "context_length_exceeded",
        f"This model's maximum context length is {context_length} tokens. However, your prompt has {prompt_tokens} "
        "tokens. Please shorten it.",
        param,
    )
