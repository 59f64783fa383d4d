"""Where the tokenizer's files are, and the tokens that the small ones declare. Imports nothing heavy.

Shared by the tokenizer and the detokenizer process, which must agree on what is a special token, and by start-up, which
looks for end-of-sequence tokens. The rules are those of transformers: `added_tokens_decoder` of tokenizer_config.json
counts if it is there; else special_tokens_map.json and added_tokens.json do, which older models have instead.
"""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from quartet.checkpoint.bounded_json import MANY_VALUES
from quartet.checkpoint.model_folder import read_json
from quartet.runtime.home import expand_home
from quartet.wire.config import Config
from quartet.wire.errors import ModelError

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
"""The files of a tokenizer; all but the first may be absent."""

_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

_CLASS_NAMES = {
    "LlamaTokenizer": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    "GemmaTokenizer": {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"},
    "GPT2Tokenizer": dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>"),
    "Qwen2Tokenizer": dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<|endoftext|>"),
}
"""What `tokenizer_class` implies where the files leave a name out."""


class AddedTokenEntry(NamedTuple):
    """A token beside the model's vocabulary; the flags are those of the tokenizers library."""

    content: str
    is_special: bool = True
    is_normalized: bool = False
    strips_left: bool = False
    strips_right: bool = False
    is_single_word: bool = False


class DeclaredTokens(NamedTuple):
    """What the small files declare.

    Fields:
        names: special tokens by the names that templates use; one that the class implies may not exist.
        added: tokens by ascending id; they replace entries of tokenizer.json.
        if_absent: tokens that are added only where nothing else does.
    """

    names: dict[str, str]
    added: list[AddedTokenEntry]
    if_absent: list[AddedTokenEntry]


class KnownToken(NamedTuple):
    """A declared token with its id."""

    id: int
    content: str
    is_special: bool


def tokenizer_folder(config: Config) -> Path:
    """Return the folder that holds tokenizer.json."""
    return expand_home(config.model.tokenizer_path or config.require_model().folder, ModelError)


def declared_tokens(folder: Path) -> DeclaredTokens:
    """Return the tokens that the files in `folder` declare; raises ModelError if one is damaged."""
    config = read_json(folder / "tokenizer_config.json")
    if "added_tokens_decoder" in config:
        older, added = {}, _added(config["added_tokens_decoder"], folder)
    else:
        older, added = read_json(folder / "special_tokens_map.json"), []
    file = {**config, **older}
    named = _named(file, folder)
    special = [*named.values(), *_further(config, folder), *_further(older, folder)]
    if "added_tokens_decoder" not in config:
        special = [*_legacy(folder / "added_tokens.json", {entry.content for entry in special}), *special]
    implied = _CLASS_NAMES.get(str(config.get("tokenizer_class")).removesuffix("Fast"), {})
    names = {name: text for name, text in implied.items() if name not in file}
    return DeclaredTokens(names | {name: entry.content for name, entry in named.items()}, added, special)


def with_ids(declared: DeclaredTokens, vocab: Mapping[str, int], added: Mapping[str, int]) -> Iterator[KnownToken]:
    """Yield the declared tokens with the ids that the tokenizers library gives them.

    Args:
        declared: of the small files.
        vocab: the model's vocabulary in tokenizer.json, without added tokens.
        added: the added tokens of tokenizer.json.
    """
    known = dict(added)
    next_id = max(len(vocab), 1 + max(added.values(), default=-1))
    for entries, replaces in ((declared.added, True), (declared.if_absent, False)):
        for entry in entries:
            if entry.content in known and not replaces:
                continue
            index = known.get(entry.content, vocab.get(entry.content))
            if index is None:
                index, next_id = next_id, next_id + 1
            known[entry.content] = index
            yield KnownToken(index, entry.content, entry.is_special)


def eos_token_ids(folder: Path, also: Collection[str] = ()) -> set[int]:
    """Return the ids of the end-of-sequence tokens that the tokenizer's files name, and those of the tokens in `also`
    that it has.

    The big tokenizer.json is read only if the small files do not say the id. Raises ModelError for a token that the
    tokenizer does not have.
    """
    paths = (folder / "tokenizer_config.json", folder / "special_tokens_map.json")
    files = [read_json(path) for path in paths]
    entries = [_special(file.get("eos_token"), folder, "eos_token") for file in files]
    texts = {entry.content for entry in entries if entry is not None}
    decoder = files[0].get("added_tokens_decoder")
    said = {entry["content"]: int(key) for key, entry in decoder.items()} if _is_decoder(decoder) else {}
    if not texts.union(also) <= said.keys():
        said = _all_ids(folder)
    missing = sorted(texts - said.keys())
    if missing:
        raise ModelError(f"{folder} names the eos_token {missing[0]!r}, which its tokenizer.json does not have")
    return {said[text] for text in texts.union(also) if text in said}


def _all_ids(folder: Path) -> dict[str, int]:
    """Return the id of every token of the tokenizer, declared ones included."""
    path = folder / "tokenizer.json"
    file = read_json(path, MANY_VALUES)
    try:
        vocab = file["model"]["vocab"] if "model" in file else {}
        if isinstance(vocab, list):
            vocab = {token: index for index, (token, _score) in enumerate(vocab)}
        added = {entry["content"]: entry["id"] for entry in file.get("added_tokens") or []}
        declared = {token.content: token.id for token in with_ids(declared_tokens(folder), vocab, added)}
        return {**vocab, **added, **declared}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{path} is not a usable tokenizer: {error!r}") from error


def _named(file: dict[str, Any], folder: Path) -> dict[str, AddedTokenEntry]:
    """Return the special tokens that have a name, those of one model (image_token) last."""
    own = {name: value for name, value in file.items() if name.endswith("_token") and isinstance(value, str | dict)}
    extra = file.get("extra_special_tokens")
    own |= extra if isinstance(extra, dict) else {}
    names = [*_NAMES, *(name for name in own if name not in _NAMES)]
    entries = {name: _special(file.get(name, own.get(name)), folder, name) for name in names}
    return {name: entry for name, entry in entries.items() if entry is not None}


def _further(file: dict[str, Any], folder: Path) -> list[AddedTokenEntry]:
    """Return the special tokens without a name."""
    found: list[AddedTokenEntry] = []
    for key in ("extra_special_tokens", "additional_special_tokens"):
        values = file.get(key) or []
        if not isinstance(values, list | dict):
            raise ModelError(f"{folder} is damaged: {key} is {values!r}, which is no list of tokens")
        entries = [_special(value, folder, key) for value in values] if isinstance(values, list) else []
        found.extend(entry for entry in entries if entry is not None)
    return found


def _added(decoder: Any, folder: Path) -> list[AddedTokenEntry]:
    if not _is_decoder(decoder):
        raise ModelError(f"{folder}/tokenizer_config.json: added_tokens_decoder is no mapping of ids to tokens")
    by_id = sorted((int(key), entry) for key, entry in decoder.items())
    return [_from_object(entry, is_special=bool(entry.get("special"))) for _index, entry in by_id]


def _is_decoder(decoder: Any) -> TypeGuard[dict[str, dict[str, Any]]]:
    return isinstance(decoder, dict) and all(
        key.isdecimal() and isinstance(entry, dict) and isinstance(entry.get("content"), str)
        for key, entry in decoder.items()
    )


def _legacy(path: Path, special: set[str]) -> list[AddedTokenEntry]:
    ids = read_json(path)
    if not all(isinstance(index, int) for index in ids.values()):
        raise ModelError(f"{path} is damaged: it is no mapping of tokens to ids")
    texts = sorted(ids, key=lambda text: int(ids[text]))
    return [AddedTokenEntry(text, text in special, is_normalized=text not in special) for text in texts]


def _special(value: Any, folder: Path, name: str) -> AddedTokenEntry | None:
    """Return the special token that `value` describes: its text, an object with its flags, or null for none."""
    if value is None or isinstance(value, str):
        return AddedTokenEntry(value) if value else None
    if isinstance(value, dict) and isinstance(value.get("content"), str):
        return _from_object(value, is_special=True)
    raise ModelError(f"{folder} is damaged: {name} is {value!r}, which names no token; download the tokenizer again")


def _from_object(entry: dict[str, Any], is_special: bool) -> AddedTokenEntry:
    is_normalized = bool(entry.get("normalized", not is_special))
    flags = (bool(entry.get(flag)) for flag in ("lstrip", "rstrip", "single_word"))
    return AddedTokenEntry(entry["content"], is_special, is_normalized, *flags)
