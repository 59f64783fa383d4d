"""How long a prompt may be (rule LEN-1): one margin and one message for every process that refuses a longer one; and
how much of it a step takes where the configuration leaves that to the engine."""

from quartet.wire.errors import RequestError
from quartet.wire.sampling_bounds import MAX_PROMPT_LOGPROBS

AUTO_CHUNK, AUTO_CHUNK_CPU = 8192, 512
"""Prompt tokens of one prefill step without --chunked-prefill-size, on a GPU and on the CPU."""
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


def check_prompt_logprobs(prompt_tokens: int, alternatives: int) -> None:
    """Raise RequestError 400 for a prompt that is too long for log-probabilities with so many alternatives; -1: none
    are wanted."""
    limit = MAX_PROMPT_LOGPROBS // (1 + max(alternatives, 0))
    if alternatives >= 0 and prompt_tokens > limit:
        raise RequestError(
            400,
            "invalid_value",
            f"Log-probabilities of a prompt with {alternatives} alternatives are given for at most {limit} tokens; "
            f"your prompt has {prompt_tokens}. Please shorten it, or ask for fewer alternatives.",
            "prompt_logprobs",
        )
