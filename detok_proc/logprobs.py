"""Log-probabilities with the names of their tokens."""

import sys
from array import array
from collections.abc import Iterable, Iterator

from detok_proc.incremental import DecoderFactory, id_name
from quartet.wire.frames import PromptLogprobs, PromptTokens, TextLogprobs, TokenLogprobs, unpack_ids


def with_text(factory: DecoderFactory, token: int, logprobs: TokenLogprobs, offset: int) -> TextLogprobs:
    """Return the log-probabilities of a token that begins at `offset`; no two tokens of the row have one name."""
    name, token_bytes = factory.token_text(token)
    top, top_ids = _named(factory, token, name, logprobs.top), tuple(other for other, _ in logprobs.top)
    return TextLogprobs(name, token_bytes, logprobs.logprob, top, offset, 0, top_ids)


def prompt_with_text(factory: DecoderFactory, part: PromptTokens) -> list[TextLogprobs]:
    """Return the log-probabilities of a part of a prompt; the first token of the prompt has none."""
    ids, named = unpack_ids(part.ids), list[TextLogprobs]()
    if part.start == 0 and ids:
        named.append(TextLogprobs(*factory.token_text(ids.pop(0)), 0.0, (), 0, -1))
    for token, (logprob, rank, top) in zip(ids, _rows(part.logprobs), strict=True):
        name, token_bytes = factory.token_text(token)
        alternatives = _named(factory, token, name, top)
        named.append(TextLogprobs(name, token_bytes, logprob, alternatives, 0, rank, tuple(other for other, _ in top)))
    return named


def _rows(columns: PromptLogprobs) -> Iterator[tuple[float, int, list[tuple[int, float]]]]:
    """Yield log-probability, rank and alternatives of each token."""
    logprobs, ranks = _floats(columns.logprobs), unpack_ids(columns.ranks)
    top = list(zip(unpack_ids(columns.top_ids), _floats(columns.top_logprobs), strict=True))
    width = len(top) // max(1, len(logprobs))
    for row, (logprob, rank) in enumerate(zip(logprobs, ranks, strict=True)):
        yield logprob, rank, top[row * width : (row + 1) * width]


def _floats(data: bytes) -> list[float]:
    floats = array("f", data)
    if sys.byteorder == "big":
        floats.byteswap()
    return floats.tolist()


def _named(
    factory: DecoderFactory, token: int, name: str, others: Iterable[tuple[int, float]]
) -> tuple[tuple[str, bytes, float], ...]:
    """Return the alternatives to a token with names that differ from its own and from one another."""
    owners = {name: token}
    top = []
    for other, logprob in others:
        text, data = factory.token_text(other)
        # Vocabularies have tokens of equal text: a byte token and a character, an added token and a plain one.
        if owners.setdefault(text, other) != other:
            text = id_name(other)
        top.append((text, data, logprob))
    return tuple(top)
