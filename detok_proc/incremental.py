"""Incremental detokenisation: one id in, the text it completes out.

The text after k ids is a pure function of those k ids and of the prompt's tail, so that it can always be computed
again. Text never ends inside a character; bytes that can never become one are replaced by U+FFFD as soon as that is
certain. The first space follows the prompt: after text of the prompt it stays, while at the start of a text, or after
a special token (a new turn), a space that SentencePiece put there is dropped.
"""

import codecs
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from detok_proc.vocabulary import PieceTable, Vocabulary

_REPLACEMENT = "\ufffd"
_MAX_WAITING_TOKENS = 16
_NO_IDS: frozenset[int] = frozenset()


class Decoder(Protocol):
    """The decoder of one stream."""

    def push(self, token: int) -> str:
        """Take the next id; return the text that it completes."""
        ...

    def flush(self) -> str:
        """End the stream: return bytes of an incomplete character as U+FFFD."""
        ...


class PieceDecoder:
    """Puts text together from pieces: the fast path, a dictionary look-up for most tokens.

    Args:
        pieces: what each id stands for.
        prompt_tail: the prompt's last ids from the last special one on, without it.
        strips_first_space: whether the first space of a text is not part of it.
    """

    __slots__ = ("_pieces", "_strips", "_waiting")

    def __init__(self, pieces: PieceTable, prompt_tail: Sequence[int], strips_first_space: bool) -> None:
        self._pieces = pieces
        self._waiting = b""
        self._strips = strips_first_space
        for token in prompt_tail:
            self.push(token)

    def push(self, token: int) -> str:
        """Take the next id; return the text that it completes."""
        piece = self._pieces[token]
        if self._waiting or isinstance(piece, bytes):
            piece = self._join(piece)
        if self._strips and piece:
            self._strips = False
            return piece.removeprefix(" ")
        return piece

    def flush(self) -> str:
        """End the stream: return bytes of an incomplete character as U+FFFD."""
        text, self._waiting = self._waiting.decode("utf-8", "replace"), b""
        return text

    def _join(self, piece: str | bytes) -> str:
        if not piece:
            return ""
        data = self._waiting + (piece.encode() if isinstance(piece, str) else piece)
        text, used = codecs.utf_8_decode(data, "replace", False)
        self._waiting = data[used:]
        return text


class WindowDecoder:
    """Decodes a short window of ids twice, without and with the newest: correct for any decoder, and slower.

    Args:
        decode: ids to text, by the tokenizers library.
        prompt_tail: as for PieceDecoder.
    """

    def __init__(self, decode: Callable[[list[int]], str], prompt_tail: Sequence[int]) -> None:
        self._decode = decode
        self._ids = list(prompt_tail)
        self._shown = len(self._ids)

    def push(self, token: int) -> str:
        """Take the next id; return the text that it completes."""
        self._ids.append(token)
        before, after = self._decode(self._ids[: self._shown]), self._decode(self._ids)
        is_certain = not after.endswith(_REPLACEMENT) or len(self._ids) - self._shown > _MAX_WAITING_TOKENS
        if len(after) <= len(before) or not is_certain:
            return ""
        # The ids shown last stay in the window as the context of the next ones.
        self._ids = self._ids[self._shown :]
        self._shown = len(self._ids)
        return after[len(before) :]

    def flush(self) -> str:
        """End the stream: return bytes of an incomplete character as U+FFFD."""
        before, after = self._decode(self._ids[: self._shown]), self._decode(self._ids)
        self._shown = len(self._ids)
        return after[len(before) :]


class DecoderFactory:
    """Makes the decoder of each stream. Loads the tokenizers library only if the model's decoder needs it.

    Args:
        folder: where the tokenizer's files are.

    Raises ModelError if they are missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.vocabulary = Vocabulary(folder)
        self._tables: dict[frozenset[int] | None, PieceTable] = {}
        """By the special tokens that are shown, None for all. They follow from the model's format: there are few."""
        self._library = None if self.vocabulary.family else _load_library(folder)

    def make(
        self, prompt_tail: Sequence[int], skip_special_tokens: bool, shown_ids: frozenset[int] = _NO_IDS
    ) -> Decoder:
        """Return the decoder of a stream whose prompt ends with `prompt_tail`.

        `shown_ids` are special tokens that are not skipped.
        """
        tail = self._since_special(prompt_tail)
        table = self._table(shown_ids if skip_special_tokens else None)
        library = self._library
        if library is not None:
            return WindowDecoder(lambda ids: library([index for index in ids if index not in table.skipped]), tail)
        return PieceDecoder(table, tail, self.vocabulary.strips_first_space)

    def _table(self, shown_ids: frozenset[int] | None) -> PieceTable:
        table = self._tables.get(shown_ids)
        if table is None:
            skipped = set() if shown_ids is None else self.vocabulary.special_ids - shown_ids
            table = self._tables[shown_ids] = PieceTable(self.vocabulary, skipped)
        return table

    def token_text(self, token: int) -> tuple[str, bytes]:
        """Return the name of one token by itself (see TextLogprobs), and its bytes."""
        piece = self._table(None)[token]
        if not piece:
            return id_name(token), b""
        if isinstance(piece, str):
            return piece, piece.encode()
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece), piece

    def _since_special(self, prompt_tail: Sequence[int]) -> list[int]:
        special = self.vocabulary.special_ids
        start = max((index + 1 for index, token in enumerate(prompt_tail) if token in special), default=0)
        return list(prompt_tail[start:])


def id_name(token: int) -> str:
    """Return the name of a token that its text does not tell from others."""
    return f"token_id:{token}"


def _load_library(folder: Path) -> Callable[[list[int]], str]:
    from quartet.checkpoint.tokenizer_loading import load_tokenizer

    tokenizer = load_tokenizer(folder)

    def decode(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=False))

    return decode
