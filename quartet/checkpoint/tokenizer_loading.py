"""Loads the tokenizer of a model folder: tokenizer.json, and the tokens that the small files beside it declare."""

from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Tokenizer

from quartet.checkpoint.model_folder import read_json
from quartet.checkpoint.tokenizer_files import AddedTokenEntry, declared_tokens
from quartet.wire.errors import ModelError


def load_tokenizer(folder: Path) -> Tokenizer:
    """Return the tokenizer, which neither truncates nor pads; raises ModelError if a file is missing or damaged."""
    path = folder / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:
        # The library raises plain Exception for everything.
        raise ModelError(f"{path} is not a usable tokenizer: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    declared = declared_tokens(folder)
    _add(tokenizer, declared.added)
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    _add(tokenizer, (entry for entry in declared.if_absent if entry.content not in known))
    # A model whose text may not contain special tokens, which few have.
    tokenizer.encode_special_tokens = read_json(folder / "tokenizer_config.json").get("split_special_tokens") is True
    return tokenizer


def _add(tokenizer: Tokenizer, entries: Iterable[AddedTokenEntry]) -> None:
    """Add tokens in this order; the library gives each the id it has in the vocabulary, else the next one."""
    tokenizer.add_tokens(
        [
            AddedToken(
                entry.content,
                single_word=entry.is_single_word,
                lstrip=entry.strips_left,
                rstrip=entry.strips_right,
                normalized=entry.is_normalized,
                special=entry.is_special,
            )
            for entry in entries
        ]
    )
