"""The token ids that prompts are drawn from, and their text where a tokenizer is at hand."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quartet.wire.errors import ConfigError

Ids = NDArray[np.int32]

DEFAULT_SIZE = 32000
"""Ids below are in the vocabulary of nearly every model."""
FIRST_ID = 1000
"""Most special tokens, and all single bytes, lie below."""
TRIES = 8


class Vocabulary:
    """Ids FIRST_ID..`size`, or the upper half of a small vocabulary.

    Args:
        size: number of ids; 0: the tokenizer's, else DEFAULT_SIZE.
        tokenizer: of the tokenizers library, or None.
    """

    def __init__(self, size: int = 0, tokenizer: Any = None) -> None:
        self._tokenizer = tokenizer
        self._size = size or (tokenizer.get_vocab_size() if tokenizer else DEFAULT_SIZE)
        self._first = min(FIRST_ID, self._size // 2)
        added = tokenizer.get_added_tokens_decoder() if tokenizer else {}
        self._special = np.array([number for number, token in added.items() if token.special], np.int32)

    @property
    def has_tokenizer(self) -> bool:
        """Say whether texts can be made and counted."""
        return self._tokenizer is not None

    def require(self, purpose: str) -> None:
        """Raise ConfigError, which begins with the purpose, if there is no tokenizer."""
        if not self.has_tokenizer:
            raise ConfigError(f"{purpose}: give --tokenizer, a folder with tokenizer.json, a .gguf file or smollm2")

    def draw(self, draw: np.random.Generator, count: int) -> Ids:
        """Return `count` ids that are no special tokens, shape (count,)."""
        ids = draw.integers(self._first, self._size, count, dtype=np.int32)
        while len(self._special) and (wrong := np.isin(ids, self._special)).any():
            ids[wrong] = draw.integers(self._first, self._size, int(wrong.sum()), dtype=np.int32)
        return ids

    def count(self, text: str) -> int:
        """Return the tokens of a text; 0 without a tokenizer."""
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids) if self._tokenizer else 0

    def text_of(self, ids: Ids) -> tuple[str, int]:
        """Return a text of as many tokens as `ids`, and how many it has.

        A text is tokenized otherwise than the ids it was made of, so it is cut and extended until the number is right.
        """
        wanted, given = len(ids), [int(one) for one in ids]
        text, tokens = "", 0
        for _ in range(TRIES):
            text = self._tokenizer.decode(given, skip_special_tokens=True)
            found = self._tokenizer.encode(text, add_special_tokens=False).ids
            tokens = len(found)
            if tokens == wanted:
                break
            given = found[:wanted] + given[: max(0, wanted - tokens)]
        return text, tokens
