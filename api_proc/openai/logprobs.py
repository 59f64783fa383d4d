"""Log-probabilities in OpenAI's two shapes: a list of records for chat, parallel columns for completions."""

from typing import Any

from quartet.wire.frames import TextLogprobs

FLOOR = -9999.0
"""JSON has no infinity: a token with probability 0 has this log-probability, as in OpenAI's API."""


def chat_logprobs(entries: list[TextLogprobs]) -> dict[str, Any]:
    """Return the `logprobs` object of a chat choice."""
    return {"content": [_chat_token(entry) for entry in entries], "refusal": None}


def completion_logprobs(entries: list[TextLogprobs], echo_length: int, text_length: int) -> dict[str, Any]:
    """Return the `logprobs` object of a completion choice.

    Offsets count characters of the choice's text, whose first `echo_length` are the prompt's. They end at
    `text_length`, which leaves the prompt out: a stop string is cut off with the tokens of which it is made.
    """
    tops: list[dict[str, float]] = []
    for entry in entries:
        top = {name: _finite(logprob) for name, _, logprob in entry.top}
        top.setdefault(entry.token, _finite(entry.logprob))
        tops.append(top)
    return {
        "tokens": [entry.token for entry in entries],
        "token_logprobs": [_finite(entry.logprob) for entry in entries],
        "top_logprobs": tops,
        "text_offset": [echo_length + min(entry.offset, text_length) for entry in entries],
    }


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


def _finite(logprob: float) -> float:
    return logprob if logprob >= FLOOR else FLOOR
