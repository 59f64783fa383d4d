"""Where the tokenizer's files are, and the added tokens that they declare. Imports nothing heavy.

Shared by the tokenizer and the detokenizer process, which must agree on what is a special token.
"""

from pathlib import Path
from typing import NamedTuple

from quartet.checkpoint.model_folder import read_json
from quartet.runtime.home import expand_home
from quartet.wire.config import Config
from quartet.wire.errors import ModelError

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
"""The files of a tokenizer; all but the first may be absent."""


class AddedTokenEntry(NamedTuple):
    """One entry of `added_tokens_decoder`; the flags are those of the tokenizers library."""

    id: int
    content: str
    is_special: bool
    is_normalized: bool
    strips_left: bool
    strips_right: bool
    is_single_word: bool


def tokenizer_folder(config: Config) -> Path:
    """Return the folder that holds tokenizer.json."""
    return expand_home(config.model.tokenizer_path or config.require_model().folder, ModelError)


def declared_tokens(folder: Path) -> list[AddedTokenEntry]:
    """Return the added tokens of tokenizer_config.json by ascending id; some models declare them only there.

    Raises ModelError if the file is damaged.
    """
    declared = read_json(folder / "tokenizer_config.json").get("added_tokens_decoder")
    entries = declared.items() if isinstance(declared, dict) else ()
    return sorted(
        AddedTokenEntry(
            int(key),
            entry["content"],
            bool(entry.get("special")),
            bool(entry.get("normalized")),
            bool(entry.get("lstrip")),
            bool(entry.get("rstrip")),
            bool(entry.get("single_word")),
        )
        for key, entry in entries
        if key.isdigit() and isinstance(entry, dict) and isinstance(entry.get("content"), str)
    )
