"""Loads the tokenizer of a model folder: tokenizer.json, and the tokens that the small files beside it declare."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tokenizers import AddedToken, Tokenizer

from quartet.checkpoint.bounded_json import MAX_BYTES, check_size
from quartet.checkpoint.model_folder import read_json
from quartet.checkpoint.readable import open_file
from quartet.checkpoint.tokenizer_files import AddedTokenEntry, declared_tokens
from quartet.wire.errors import ModelError


def load_tokenizer(folder: Path) -> Tokenizer:
    """Return the tokenizer, which neither truncates nor pads; raises ModelError if a file is missing or damaged."""
    path = folder / "tokenizer.json"
    declared = declared_tokens(folder)
    with library_errors(f"{path} is not a usable tokenizer"):
        with open_file(path) as file:
            data = file.read(MAX_BYTES + 1)
        check_size(data)
        tokenizer = Tokenizer.from_buffer(data)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        _add(tokenizer, declared.added)
        known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
        _add(tokenizer, (entry for entry in declared.if_absent if entry.content not in known))
    # A model whose text may not contain special tokens, which few have.
    tokenizer.encode_special_tokens = read_json(folder / "tokenizer_config.json").get("split_special_tokens") is True
    return tokenizer


@contextmanager
def library_errors(what: str) -> Iterator[None]:
    """Turn every error of the tokenizers library into a ModelError that says `what` is wrong."""
    try:
        yield
    except ModelError:
        raise
    except BaseException as error:
        if not is_library_error(error):
            raise
        raise ModelError(f"{what}: {error}") from error


def is_library_error(error: BaseException) -> bool:
    """Say whether the library may have raised `error`: a plain Exception, or a panic of its Rust code, which is none
    and whose class has no name to import."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


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
