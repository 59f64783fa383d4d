"""Keeps the text that clients write from turning into control tokens.

A chat template writes control tokens as text, `<|im_end|>`, and so can a user. Before rendering, each control token's
text inside client strings is broken by a mark. After rendering, an unbroken control token is the template's own: it is
replaced by a stand-in, the marks are removed, and the text is encoded by a tokenizer that reads control tokens as plain
text and stand-ins as control tokens. Mark and stand-ins contain a secret, so that no client can write them. Only a
conversation that contains such text is treated so; any other is encoded as it is.
"""

import re
import secrets
from collections.abc import Callable
from typing import Any

from tokenizers import AddedToken, Tokenizer


def encode_freely(tokenizer: Tokenizer, text: str, adds_special_tokens: bool) -> list[int]:
    """Return the ids of `text`, without holding the interpreter lock.

    Of the library's calls only those for batches release it, and a long prompt must not stop the event loop.
    """
    ids: list[int] = tokenizer.encode_batch_fast([text], add_special_tokens=adds_special_tokens)[0].ids
    return ids


class SpecialTokenGuard:
    """Breaks control tokens in client strings and encodes what was rendered from them.

    Args:
        load: loads one more instance of the model's tokenizer.
        special: the control tokens by id.
    """

    def __init__(self, load: Callable[[], Tokenizer], special: dict[int, AddedToken]) -> None:
        secret = secrets.token_hex(16)
        self._load = load
        self._mark = f"\ue000{secret}\ue001"
        self._special = special
        self._ids = {token.content: index for index, token in special.items()}
        self._stand_ins = {text: f"\ue002{secret}{index}\ue003" for text, index in self._ids.items()}
        longest_first = sorted(self._ids, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None
        self._literal: Tokenizer | None = None
        self._id_of_stand_in: dict[int, int] = {}

    def protect(self, value: Any) -> Any:
        """Return `value`, strings inside lists and mappings included, with every control token's text broken."""
        pattern = self._pattern
        if pattern is None:
            return value
        if isinstance(value, str):
            return pattern.sub(self._break, value) if pattern.search(value) else value
        if isinstance(value, list):
            return [self.protect(each) for each in value]
        if isinstance(value, dict):
            return {self.protect(key): self.protect(each) for key, each in value.items()}
        return value

    def is_protected(self, text: str) -> bool:
        """Return whether the rendered `text` contains a mark."""
        return self._mark in text

    def reveal(self, text: str) -> str:
        """Return `text` as the client wrote it, without marks."""
        return text.replace(self._mark, "")

    def encode(self, text: str) -> list[int]:
        """Return the ids of a rendered, protected text: only the template's control tokens are control tokens."""
        tokenizer = self._literal_tokenizer()
        assert self._pattern is not None
        whole = self._pattern.sub(lambda match: self._stand_ins[match[0]], text)
        ids = encode_freely(tokenizer, self.reveal(whole), adds_special_tokens=False)
        return [self._id_of_stand_in.get(index, index) for index in ids]

    def _break(self, match: re.Match[str]) -> str:
        return match[0][:1] + self._mark + match[0][1:]

    def _literal_tokenizer(self) -> Tokenizer:
        if self._literal is None:
            tokenizer = self._load()
            tokenizer.encode_special_tokens = True
            for index, token in self._special.items():
                stand_in = AddedToken(
                    self._stand_ins[token.content],
                    special=False,
                    normalized=False,
                    lstrip=token.lstrip,
                    rstrip=token.rstrip,
                )
                tokenizer.add_tokens([stand_in])
                added = tokenizer.token_to_id(stand_in.content)
                assert added is not None
                self._id_of_stand_in[added] = index
            self._literal = tokenizer
        return self._literal
