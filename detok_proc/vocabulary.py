"""The piece of text or bytes that each token id stands for; output is put together from them.

Read straight from tokenizer.json, without the tokenizers library: a restarted process is ready in a fraction of a
second. Two families of decoders are known, byte-level BPE and SentencePiece; between them they cover the supported
models. For any other decoder `Vocabulary.family` is None and the general path decodes with the library.
"""

from collections.abc import Set
from enum import Enum
from pathlib import Path

import msgspec

from quartet.checkpoint.bounded_json import check_size
from quartet.checkpoint.readable import unreadable
from quartet.checkpoint.tokenizer_files import KnownToken, declared_tokens, with_ids
from quartet.wire.errors import ModelError

Piece = str | bytes
"""Text where the token is whole UTF-8, else its bytes."""

_META_SPACE = "\u2581"


class Family(Enum):
    """How tokens become text."""

    BYTE_LEVEL = "byte level"
    SENTENCEPIECE = "sentencepiece"


class _AddedToken(msgspec.Struct):
    id: int
    content: str
    is_special: bool = msgspec.field(name="special", default=False)


class _Model(msgspec.Struct):
    vocab: dict[str, int] | list[tuple[str, float]]


class _Step(msgspec.Struct):
    """One decoder of a sequence; the fields of all types together."""

    type: str
    decoders: "list[_Step]" = []
    pattern: dict[str, str] = {}
    content: str = ""
    start: int = 0
    stop: int = 0
    replacement: str = _META_SPACE
    prepend_scheme: str = "always"
    add_prefix_space: bool = True


class _TokenizerFile(msgspec.Struct):
    model: _Model
    added_tokens: list[_AddedToken] = []
    decoder: _Step | None = None


class Vocabulary:
    """The tokens of a model, by id.

    Args:
        folder: where tokenizer.json and tokenizer_config.json are.

    Raises ModelError if the file is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        file = _read(folder / "tokenizer.json")
        vocab = file.model.vocab
        if isinstance(vocab, list):
            vocab = {token: index for index, (token, _score) in enumerate(vocab)}
        self._tokens: dict[int, str] = {index: token for token, index in vocab.items()}
        self.special_ids: set[int] = set()
        declared = with_ids(declared_tokens(folder), vocab, {token.content: token.id for token in file.added_tokens})
        added: list[_AddedToken | KnownToken] = [*file.added_tokens, *declared]
        for token in added:
            self._tokens[token.id] = token.content
            if token.is_special:
                self.special_ids.add(token.id)
        steps = _flatten(file.decoder)
        self.family = _family(steps)
        self.strips_first_space = any(_strips_first_space(step) for step in steps)
        self._characters = _byte_characters()

    def __len__(self) -> int:
        return len(self._tokens)

    def piece(self, token: int) -> Piece:
        """Return what `token` stands for, special tokens included; an id without a token is empty text."""
        content = self._tokens.get(token)
        if content is None:
            return ""
        data = self._sentencepiece_bytes(content) if self.family is Family.SENTENCEPIECE else self._bytes(content)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return data

    def _bytes(self, content: str) -> bytes:
        """Undo the mapping of bytes to printable characters; a token outside of it (an added one) is itself."""
        characters = self._characters
        try:
            return bytes([characters[character] for character in content])
        except KeyError:
            return content.encode("utf-8", "replace")

    def _sentencepiece_bytes(self, content: str) -> bytes:
        if len(content) == 6 and content.startswith("<0x") and content.endswith(">"):
            try:
                return bytes.fromhex(content[3:5])
            except ValueError:
                pass
        return content.replace(_META_SPACE, " ").encode("utf-8", "replace")


class PieceTable(dict[int, Piece]):
    """Pieces by id, looked up in the vocabulary once and then kept; those of `skipped` ids are empty."""

    def __init__(self, vocabulary: Vocabulary, skipped: Set[int]) -> None:
        super().__init__()
        self._vocabulary = vocabulary
        self.skipped = skipped

    def __missing__(self, token: int) -> Piece:
        piece = "" if token in self.skipped else self._vocabulary.piece(token)
        # Ids beyond the vocabulary (padding rows of the output matrix) are few, so keeping them is no leak.
        self[token] = piece
        return piece


def _read(path: Path) -> _TokenizerFile:
    try:
        data = path.read_bytes()
        check_size(data)
        return msgspec.json.decode(data, type=_TokenizerFile)
    except OSError as error:
        raise unreadable(error, path) from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not a usable tokenizer: {error}") from error


def _flatten(step: _Step | None) -> list[_Step]:
    if step is None:
        return []
    if step.type == "Sequence":
        return [inner for each in step.decoders for inner in _flatten(each)]
    return [step]


def _family(steps: list[_Step]) -> Family | None:
    if [step.type for step in steps] == ["ByteLevel"]:
        return Family.BYTE_LEVEL
    if not steps or not all(_is_sentencepiece(step) for step in steps):
        return None
    return Family.SENTENCEPIECE if any(step.type in ("Replace", "Metaspace") for step in steps) else None


def _is_sentencepiece(step: _Step) -> bool:
    if step.type == "Replace":
        return step.pattern.get("String") == _META_SPACE and step.content == " "
    if step.type == "Strip":
        return _strips_first_space(step) or (step.start == 0 and step.stop == 0)
    if step.type == "Metaspace":
        return step.replacement == _META_SPACE
    return step.type in ("ByteFallback", "Fuse")


def _strips_first_space(step: _Step) -> bool:
    if step.type == "Metaspace":
        return step.prepend_scheme != "never" and step.add_prefix_space
    return step.type == "Strip" and step.content == " " and step.start == 1 and step.stop == 0


def _byte_characters() -> dict[str, int]:
    """Return GPT-2's mapping of printable characters to the 256 bytes (byte-level BPE vocabularies are written so)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    mapping = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in set(printable))
    return {**mapping, **{chr(256 + index): byte for index, byte in enumerate(others)}}
