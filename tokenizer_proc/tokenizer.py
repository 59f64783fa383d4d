"""The model's tokenizer: text to ids and back."""

from pathlib import Path

from quartet.checkpoint.model_folder import read_json
from quartet.checkpoint.tokenizer_files import declared_tokens
from quartet.checkpoint.tokenizer_loading import load_tokenizer
from tokenizer_proc.chat_template import SpecialNames
from tokenizer_proc.special_tokens import SpecialTokenGuard, encode_freely

_PIECE_CHARACTERS = 1 << 17


class TextEncoder:
    """Loads tokenizer.json and encodes.

    Args:
        folder: where tokenizer.json and tokenizer_config.json are.

    Raises ModelError if they are missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        config = read_json(folder / "tokenizer_config.json")
        self._tokenizer = load_tokenizer(folder)
        added = self._tokenizer.get_added_tokens_decoder()
        self._added_ids = {token.content: index for index, token in added.items()}
        special = {index: token for index, token in added.items() if token.special and token.content}
        self.guard = SpecialTokenGuard(lambda: load_tokenizer(folder), special)
        names = declared_tokens(folder).names
        self.names = SpecialNames({name: text for name, text in names.items() if self._has(text)})
        self._bos_id: int | None = None
        if config.get("add_bos_token") is True and "bos_token" in self.names.tokens:
            self._bos_id = self._tokenizer.token_to_id(self.names.tokens["bos_token"])

    def encode_text(self, text: str, adds_special_tokens: bool = True) -> list[int]:
        """Return the ids of plain text, with or without the special tokens that the model expects around it (bos)."""
        ids = encode_freely(self._tokenizer, text, adds_special_tokens)
        if not adds_special_tokens:
            return ids
        if self._bos_id is not None and ids[:1] != [self._bos_id]:
            ids.insert(0, self._bos_id)
        return ids

    def encode_rendered(self, text: str) -> list[int]:
        """Return the ids of text that a chat template has made; it contains its own special tokens."""
        if self.guard.is_protected(text):
            return self.guard.encode(text)
        return encode_freely(self._tokenizer, text, adds_special_tokens=False)

    def decode(self, ids: list[int], skips_special_tokens: bool = False) -> str:
        """Return the text of `ids`, special tokens included unless they are to be skipped."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=skips_special_tokens))

    def token(self, index: int) -> str | None:
        """Return the token of id `index`, if there is one."""
        found = self._tokenizer.id_to_token(index) if index >= 0 else None
        return None if found is None else str(found)

    def added_id(self, text: str) -> int:
        """Return the id of the added token that `text` is, -1 if it is none."""
        return self._added_ids.get(text, -1)

    def is_longer_than(self, text: str, limit: int) -> bool:
        """Return whether `text` certainly has more than `limit` tokens, without encoding all of a very long one.

        It is encoded in pieces until the count is too high; cutting adds at most a few tokens to each piece.
        """
        if len(text) <= _PIECE_CHARACTERS:
            return False
        count = 0
        for start in range(0, len(text), _PIECE_CHARACTERS):
            piece = text[start : start + _PIECE_CHARACTERS]
            count += len(encode_freely(self._tokenizer, piece, adds_special_tokens=False)) - 2
            if count > limit:
                return True
        return False

    def _has(self, text: str) -> bool:
        return self._tokenizer.token_to_id(text) is not None
