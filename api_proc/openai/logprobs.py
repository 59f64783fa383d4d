"""Log-probabilities in OpenAI's two shapes: a list of records for chat, parallel columns for completions."""

from typing import Any

from quartet.wire.frames import TextLogprobs

FLOOR = -9999.0
"""JSON has no infinity: a token with probability 0 has this log-probability, as in OpenAI's API."""


def chat_logprobs(entries: list[TextLogprobs]) -> dict[str, Any]:
    """Return the `logprobs` object of a chat choice."""
    return {"content": [_chat_token(entry) for entry in entries], "refusal": None}


def completion_logprobs(entries: list[TextLogprobs], offset: int) -> tuple[dict[str, Any], int]:
    """Return the `logprobs` object of a completion choice, and the offset after it.

    `offset` counts characters of the choice's text. A token that only continues a character starts where the
    character ends.
    """
    tokens: list[str] = []
    values: list[float] = []
    tops: list[dict[str, float]] = []
    offsets: list[int] = []
    for entry in entries:
        tokens.append(entry.token)
        values.append(_finite(entry.logprob))
        top = {token: _finite(logprob) for token, _, logprob in entry.top}
        top.setdefault(entry.token, _finite(entry.logprob))
        tops.append(top)
        offsets.append(offset)
        offset += _characters_begun(entry.token_bytes)
    columns = {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}
    return columns, offset


def _chat_token(entry: TextLogprobs) -> dict[str, Any]:
    return {
        "token": entry.token,
        "logprob": _finite(entry.logprob),
        "bytes": list(entry.token_bytes),
        "top_logprobs": [
            {"token": token, "logprob": _finite(logprob), "bytes": list(token_bytes)}
            for token, token_bytes, logprob in entry.top
        ],
    }


def _characters_begun(token_bytes: bytes) -> int:
    # In UTF-8 every byte but a continuation byte (10xxxxxx) begins a character.
    return sum(1 for byte in token_bytes if byte & 0xC0 != 0x80)


def _finite(logprob: float) -> float:
    return logprob if logprob >= FLOOR else FLOOR
