"""The model's tokenizer as llguidance reads it, and the bounds under which it compiles: the same in every process."""

from llguidance import LLParserLimits, LLTokenizer
from tokenizers import Tokenizer

from quartet.checkpoint.tokenizer_files import tokenizer_folder
from quartet.checkpoint.tokenizer_loading import library_errors, load_tokenizer
from quartet.wire.config import Config


def load_grammar_tokenizer(config: Config) -> LLTokenizer:
    """Return the tokenizer of the served model, whose masks have a bit for each id of the model's vocabulary.

    It takes up to seconds and 100 MB. Raises ModelError for a tokenizer that llguidance cannot read.
    """
    model = config.require_model()
    return read_grammar_tokenizer(load_tokenizer(tokenizer_folder(config)), model.vocab_size, model.eos_token_ids)


def read_grammar_tokenizer(tokenizer: Tokenizer, vocab_size: int, eos_token_ids: tuple[int, ...]) -> LLTokenizer:
    """Return `tokenizer` as `load_grammar_tokenizer` does."""
    with library_errors("no grammar can be used with this tokenizer"):
        return LLTokenizer(tokenizer.to_str(), n_vocab=vocab_size, eos_token=list(eos_token_ids) or None)


MAX_ITEMS_IN_ROW = 500
"""Readings of the output so far that an ambiguous grammar may have. A mask takes time in their square: with 2,000,
llguidance's own bound, up to 6 s, with 500 some 50 ms. 128 tools have about 300 at the start."""


def grammar_limits() -> LLParserLimits:
    """Return the bounds of a grammar: a mask takes some 50 ms at most, and all lexer states some 50 MB.

    A grammar that needs more fails, at once or in mid-output. Ordinary schemas need a hundredth. Errors do not quote
    the output."""
    return LLParserLimits(
        max_items_in_row=MAX_ITEMS_IN_ROW, step_lexer_fuel=100_000, max_lexer_states=50_000, verbose_errors=False
    )
