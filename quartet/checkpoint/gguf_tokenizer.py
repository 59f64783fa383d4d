"""Rebuilds a Hugging Face tokenizer from the vocabulary inside a GGUF file.

Byte-level BPE (`gpt2` in GGUF's words) differs between models only in how text is cut before merging; the cuts known
here are those of the supported architectures. SentencePiece BPE (`llama`) is rebuilt with merges derived from the
scores and byte fallback. Anything else is refused rather than approximated: wrong ids look like a bad model.
"""

from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from quartet.checkpoint.tokenizer_loading import library_errors
from quartet.wire.errors import ModelError

_UNKNOWN_TYPE, _CONTROL_TYPE, _USER_TYPE = 2, 3, 4
_META_SPACE = "\u2581"
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3_CUTS = _WORDS + r"|\p{N}{1,3}" + _REST
_QWEN2_CUTS = _WORDS + r"|\p{N}" + _REST


def build_tokenizer(metadata: dict[str, Any]) -> Tokenizer:
    """Return the tokenizer that the GGUF `metadata` describes; raises ModelError for a kind that is not known."""
    kind = metadata.get("tokenizer.ggml.model")
    if kind not in ("gpt2", "llama"):
        raise ModelError(f"the GGUF file has a tokenizer of kind {kind!r}; supported are gpt2 and llama")
    with library_errors("the GGUF file holds no usable tokenizer"):
        try:
            tokenizer = _byte_level(metadata) if kind == "gpt2" else _sentencepiece(metadata)
            _add_special_tokens(tokenizer, metadata)
            _add_bos_and_eos(tokenizer, metadata)
        except KeyError as error:
            raise ModelError(f"the GGUF file has no {error.args[0]}; use a file that contains its tokenizer") from error
    return tokenizer


def tokenizer_config(metadata: dict[str, Any], context_length: int) -> dict[str, Any]:
    """Return the content of tokenizer_config.json for the same `metadata`."""
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    config: dict[str, Any] = {
        "add_bos_token": _adds_bos(metadata),
        "add_eos_token": bool(metadata.get("tokenizer.ggml.add_eos_token", False)),
        "clean_up_tokenization_spaces": False,
        "model_max_length": context_length,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        index = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if isinstance(index, int) and index < len(tokens):
            config[f"{name}_token"] = tokens[index]
    template = metadata.get("tokenizer.chat_template")
    if template:
        config["chat_template"] = template
    return config


def _byte_level(metadata: dict[str, Any]) -> Tokenizer:
    cuts = metadata.get("tokenizer.ggml.pre", "default")
    vocab = {token: index for index, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    merges = [_split_merge(merge) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=cuts in ("llama-bpe", "llama3")))
    split: pre_tokenizers.PreTokenizer | None
    if cuts == "smollm":
        split = pre_tokenizers.Digits(individual_digits=True)
    elif cuts in ("llama-bpe", "llama3"):
        split = pre_tokenizers.Split(Regex(_LLAMA3_CUTS), "isolated")
    elif cuts == "qwen2":
        split = pre_tokenizers.Split(Regex(_QWEN2_CUTS), "isolated")
        tokenizer.normalizer = normalizers.NFC()
    elif cuts in ("default", "gpt-2", "gpt2"):
        split = None
    else:
        raise ModelError(f"the GGUF file cuts text as {cuts!r}; supported are smollm, llama-bpe, qwen2 and gpt-2")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None or cuts == "smollm")
    tokenizer.pre_tokenizer = to_bytes if split is None else pre_tokenizers.Sequence([split, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _split_merge(merge: str) -> tuple[str, str]:
    """Cut at the one space; a token of a byte-level vocabulary holds none."""
    left, _, right = merge.partition(" ")
    return left, right


def _sentencepiece(metadata: dict[str, Any]) -> Tokenizer:
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    vocab = {token: index for index, token in enumerate(tokens)}
    merges = _merges_from_scores(vocab, metadata["tokenizer.ggml.scores"])
    unknown = tokens[metadata.get("tokenizer.ggml.unknown_token_id", 0)]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    has_prefix = metadata.get("tokenizer.ggml.add_space_prefix", True)
    spaces = normalizers.Replace(" ", _META_SPACE)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_META_SPACE), spaces]) if has_prefix else spaces
    steps = [decoders.Replace(_META_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if has_prefix:
        steps.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def _merges_from_scores(vocab: dict[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """Return every pair of tokens that makes a token, the best-scored result first.

    SentencePiece always merges the pair whose result scores highest; merges ranked by it give the same encoding.
    """
    ranked: list[tuple[float, int, int, int, str, str]] = []
    for token, index in vocab.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocab and right in vocab:
                ranked.append((-scores[index], index, vocab[left], vocab[right], left, right))
    ranked.sort()
    return [(left, right) for *_, left, right in ranked]


def _add_special_tokens(tokenizer: Tokenizer, metadata: dict[str, Any]) -> None:
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    kinds: list[int] = metadata.get("tokenizer.ggml.token_type", [])
    is_sentencepiece = metadata["tokenizer.ggml.model"] == "llama"
    for token, kind in zip(tokens, kinds, strict=False):
        if kind == _CONTROL_TYPE or (kind == _UNKNOWN_TYPE and is_sentencepiece):
            tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True)])
        elif kind == _USER_TYPE:
            tokenizer.add_tokens([AddedToken(token, normalized=False, special=False)])


def _adds_bos(metadata: dict[str, Any]) -> bool:
    default = metadata["tokenizer.ggml.model"] == "llama" or metadata.get("tokenizer.ggml.pre") == "llama-bpe"
    return bool(metadata.get("tokenizer.ggml.add_bos_token", default))


def _add_bos_and_eos(tokenizer: Tokenizer, metadata: dict[str, Any]) -> None:
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    is_added = {"bos": _adds_bos(metadata), "eos": metadata.get("tokenizer.ggml.add_eos_token", False)}
    ids = {name: metadata.get(f"tokenizer.ggml.{name}_token_id") for name in is_added if is_added[name]}
    added = {name: (tokens[index], index) for name, index in ids.items() if index is not None}
    if added:
        before = [added["bos"][0]] if "bos" in added else []
        after = [added["eos"][0]] if "eos" in added else []
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[*before, "$A", *after],
            pair=[*before, "$A", "$B:1", *after],
            special_tokens=list(dict.fromkeys(added.values())),
        )
