"""Follows a compiled grammar through texts: given ones, and ones that are drawn from what its masks allow."""

import random
from pathlib import Path

import numpy as np
from llguidance import LLMatcher, LLTokenizer

from quartet.checkpoint.grammar_tokenizer import grammar_limits, read_grammar_tokenizer
from quartet.checkpoint.tokenizer_loading import load_tokenizer


class Walker:
    """Reads texts by the model's tokenizer.

    Args:
        folder: with the tokenizer.
        vocab_size: of the model.
        eos_token_ids: of the model.
    """

    def __init__(self, folder: Path, vocab_size: int, eos_token_ids: tuple[int, ...]) -> None:
        self._tokenizer = load_tokenizer(folder)
        self.masks: LLTokenizer = read_grammar_tokenizer(self._tokenizer, vocab_size, eos_token_ids)

    def accepts(self, source: str, text: str) -> bool:
        """Return whether `text` is an output; special tokens in it are special."""
        return self.accepts_ids(source, self._tokenizer.encode(text, add_special_tokens=False).ids)

    def accepts_ids(self, source: str, ids: list[int]) -> bool:
        """Return whether `ids` are an output, without the end-of-sequence id."""
        matcher = self._matcher(source)
        return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()

    def draw(self, source: str, rng: random.Random, max_tokens: int) -> list[int] | None:
        """Return an output drawn from the masks, without the end-of-sequence id; None if it does not end by itself.

        An output that may end does so at every second opportunity, and short tokens are avoided, so that texts end.
        """
        matcher = self._matcher(source)
        ids: list[int] = []
        for _ in range(max_tokens):
            allowed = _ids_of(matcher.compute_bitmask())
            assert allowed, matcher.get_error()
            ends = [index for index in allowed if index in self.masks.eos_tokens]
            if ends and (len(ends) == len(allowed) or rng.random() < 0.5):
                return ids
            index = rng.choice([index for index in allowed if index not in ends])
            assert matcher.consume_token(index), matcher.get_error()
            ids.append(index)
        return None

    def decode(self, ids: list[int]) -> str:
        """Return the text of `ids`."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))

    def _matcher(self, source: str) -> LLMatcher:
        matcher = LLMatcher(self.masks, source, log_level=0, limits=grammar_limits())
        assert not matcher.is_error(), matcher.get_error()
        return matcher


def _ids_of(mask: bytes) -> list[int]:
    ids: list[int] = np.flatnonzero(np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little")).tolist()
    return ids
