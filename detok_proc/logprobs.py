"""Log-probabilities with the names of their tokens."""

from detok_proc.incremental import DecoderFactory, id_name
from quartet.wire.frames import TextLogprobs, TokenLogprobs


def with_text(factory: DecoderFactory, token: int, logprobs: TokenLogprobs, offset: int) -> TextLogprobs:
    """Return the log-probabilities of a token that begins at `offset`; no two tokens of the row have one name."""
    name, token_bytes = factory.token_text(token)
    owners = {name: token}
    top = []
    for other, logprob in logprobs.top:
        text, data = factory.token_text(other)
        # Vocabularies have tokens of equal text: a byte token and a character, an added token and a plain one.
        if owners.setdefault(text, other) != other:
            text = id_name(other)
        top.append((text, data, logprob))
    return TextLogprobs(name, token_bytes, logprobs.logprob, tuple(top), offset)
