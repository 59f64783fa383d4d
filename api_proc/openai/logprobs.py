"""Log-probabilities in OpenAI's two shapes: a list of records for chat, parallel columns for completions; and those of
a prompt in vLLM's, a map by token id for each token."""

import codecs
from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace

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


def prompt_and_output(entries: list[TextLogprobs]) -> tuple[list[TextLogprobs], list[TextLogprobs]]:
    """Divide entries into those of the prompt, which come first, and those of the output."""
    count = next((index for index, entry in enumerate(entries) if not entry.rank), len(entries))
    return entries[:count], entries[count:]


def echo_logprobs(entries: list[TextLogprobs], echo: str, alternatives: int) -> dict[str, list[Any]]:
    """Return the `logprobs` object of an echoed prompt; its first token has null."""
    columns = completion_logprobs([replace(entry, top=entry.top[:alternatives]) for entry in entries], 0, 0)
    columns["text_offset"] = _offsets(entries, len(echo))
    for name in ("token_logprobs", "top_logprobs"):
        columns[name][:1] = [None] * len(entries[:1])
    return columns


def _offsets(entries: list[TextLogprobs], text_length: int) -> list[int]:
    """Return where each token of a prompt begins in its text.

    What the tokenizer has put before the text (a special token, a space) has no place in it."""
    decode, offsets, at = codecs.getincrementaldecoder("utf-8")("replace").decode, [], 0
    for entry in entries:
        offsets.append(at)
        at += len(decode(entry.token_bytes))
    ahead = max(0, at + len(decode(b"", True)) - text_length)
    return [min(max(0, offset - ahead), text_length) for offset in offsets]


def prompt_logprobs(
    entries: list[TextLogprobs], ids: Sequence[int], alternatives: int
) -> list[dict[str, dict[str, Any]] | None]:
    """Return vLLM's `prompt_logprobs`: null for the first token, for the others the token's and the alternatives'."""
    return [_by_id(entry, token, alternatives) for entry, token in zip(entries, ids, strict=False)]


def _by_id(entry: TextLogprobs, token: int, alternatives: int) -> dict[str, dict[str, Any]] | None:
    if entry.rank < 0:
        return None
    scores = {str(token): _score(entry.logprob, entry.rank, entry.token)}
    for rank, (other, (name, _, logprob)) in enumerate(zip(entry.top_ids, entry.top, strict=True), 1):
        if rank <= alternatives:
            scores.setdefault(str(other), _score(logprob, rank, name))
    return scores


def _score(logprob: float, rank: int, name: str) -> dict[str, Any]:
    return {"logprob": _finite(logprob), "rank": rank, "decoded_token": name}


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
