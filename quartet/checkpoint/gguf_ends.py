"""The special tokens that a GGUF file names, and those that end the output."""

from typing import Any

from quartet.wire.errors import ModelError

_NO_TOKEN = (-1, 2**32 - 1)
_END_KEYS = tuple(f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom"))
# GGUF has no list of ends; llama.cpp knows them by their text (llama-vocab.cpp, special_eog_ids).
_END_TEXTS = frozenset(
    (
        *("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|endoftext|>", "<|end_of_text|>", "<end_of_turn>"),
        *("</s>", "<eos>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<end_of_utterance>"),
    )
)
_CONTROL_TYPE = 3


def without_absent_ids(metadata: dict[str, Any]) -> dict[str, Any]:
    """Return `metadata` without the token ids that stand for no token; raises ModelError for impossible ones."""
    if "tokenizer.ggml.tokens" not in metadata:
        return metadata
    vocab_size = len(metadata["tokenizer.ggml.tokens"])
    kept = dict(metadata)
    for key, value in metadata.items():
        if key.startswith("tokenizer.ggml.") and key.endswith("_token_id"):
            if value in _NO_TOKEN:
                del kept[key]
            elif type(value) is not int or not 0 <= value < vocab_size:
                raise ModelError(f"the GGUF file names {value} as {key}, outside its vocabulary of {vocab_size}")
    return kept


def end_ids(metadata: dict[str, Any]) -> list[int]:
    """Return the ids that end the output: those of the end-of-turn keys first, then control tokens by their text."""
    named = [metadata[key] for key in _END_KEYS if key in metadata]
    kinds = metadata.get("tokenizer.ggml.token_type", [])
    pairs = enumerate(zip(metadata.get("tokenizer.ggml.tokens", []), kinds, strict=False))
    known = [index for index, (text, kind) in pairs if kind == _CONTROL_TYPE and text in _END_TEXTS]
    return list(dict.fromkeys([*named, *known]))
