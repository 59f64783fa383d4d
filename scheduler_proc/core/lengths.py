"""What length a request may have (rules LEN-1 to LEN-3)."""

from quartet.wire.errors import RequestError
from quartet.wire.lengths import MARGIN_TOKENS, context_length_exceeded, is_too_long

UNLIMITED = 1 << 30


def ceil_to(tokens: int, page_size: int) -> int:
    """Round up to a multiple of the page size."""
    return -(-tokens // page_size) * page_size


def floor_to(tokens: int, page_size: int) -> int:
    """Round down to a multiple of the page size."""
    return tokens // page_size * page_size


class LengthRules:
    """The limits of one engine.

    Args:
        context_length: the model's context in tokens.
        capacity_tokens: N, the KV pool.
        page_size: P.
    """

    def __init__(self, context_length: int, capacity_tokens: int, page_size: int) -> None:
        self.context_length = context_length
        self.capacity_tokens = capacity_tokens
        self.page_size = page_size
        self.max_request_tokens = min(context_length - 1, capacity_tokens - 1)

    def longest_prompt(self) -> int:
        """Return the length that a prompt is cut to with allow_auto_truncate."""
        return max(1, min(self.max_request_tokens - MARGIN_TOKENS, self.capacity_tokens - self.page_size) - 1)

    def check_prompt(self, prompt_tokens: int) -> None:
        """Raise RequestError 400 for a prompt that can never run (LEN-1)."""
        if not prompt_tokens:
            # The tokenizer refuses it; here it would wait at the head of the queue for ever.
            raise RequestError(400, "invalid_value", "The prompt is empty.", "prompt")
        if is_too_long(self.context_length, prompt_tokens):
            raise context_length_exceeded(self.context_length, prompt_tokens, "messages")
        if (
            prompt_tokens >= self.max_request_tokens - MARGIN_TOKENS
            or prompt_tokens + self.page_size >= self.capacity_tokens
        ):
            raise RequestError(
                400,
                "context_length_exceeded",
                f"The prompt has {prompt_tokens} tokens, but the KV cache of this server holds {self.capacity_tokens}. "
                "Please shorten it, or start the server with more memory.",
                "messages",
            )

    def clamp_max_new_tokens(self, wanted: int | None, prompt_tokens: int) -> int:
        """Return M: what every accepted request can be given on an idle engine (LEN-2)."""
        page_size = self.page_size
        by_pool = self.capacity_tokens - ceil_to(prompt_tokens, page_size) - page_size - 1
        by_length = self.max_request_tokens - prompt_tokens - 1
        return max(0, min(UNLIMITED if wanted is None else wanted, by_length, by_pool))
