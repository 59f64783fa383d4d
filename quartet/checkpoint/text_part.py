"""The text part of a checkpoint of several modalities: its fields of config.json, and the names of its tensors.

Start-up and the loader read config.json and weights through here, so that everything else knows models of
text alone. What belongs to images or sound is left out by name.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quartet.checkpoint.model_folder import read_json
from quartet.wire.errors import ModelError

TEXT_PARTS: dict[tuple[str, str], str] = {
    ("Mistral3ForConditionalGeneration", "mistral"): "MistralForCausalLM",
    ("Gemma3ForConditionalGeneration", "gemma3_text"): "Gemma3ForCausalLM",
    ("Gemma4ForConditionalGeneration", "gemma4_text"): "Gemma4ForCausalLM",
    ("Qwen3_5ForConditionalGeneration", "qwen3_5_text"): "Qwen3_5ForCausalLM",
    ("Qwen3_5MoeForConditionalGeneration", "qwen3_5_moe_text"): "Qwen3_5MoeForCausalLM",
}
"""The family of a text part, by the architecture of the whole and the model_type in its text_config."""

# Said of the whole model; where the text part says otherwise, transformers follows the whole.
_OF_THE_WHOLE = ("tie_word_embeddings", "bos_token_id", "eos_token_id", "quantization_config", "dtype", "torch_dtype")
_TEXT_PREFIXES = {
    "model.language_model.": "model.",
    "language_model.model.": "model.",
    "language_model.lm_head.": "lm_head.",
}
# Towers of images and sound, what projects from them into the text part, and layers that predict further tokens.
_OTHER_PARTS = (
    *("vision_tower.", "vision_model.", "visual.", "audio_tower.", "embed_vision.", "embed_audio."),
    *("multi_modal_projector.", "mtp."),
)


def read_config(folder: Path) -> dict[str, Any]:
    """Return config.json of `folder`, or its text part, or {} if there is no such file; raises ModelError."""
    return text_part(read_json(folder / "config.json"))


def text_part(config: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a model of text alone that are in a parsed config.json; itself if it describes one.

    Raises ModelError, naming what works, for a text part of a kind that is not supported."""
    inner, names = config.get("text_config"), config.get("architectures")
    whole = names[0] if isinstance(names, list) and names else None
    kinds = {kind: family for (name, kind), family in TEXT_PARTS.items() if name == whole}
    if not kinds:
        return config
    if not isinstance(inner, dict):
        raise ModelError(f"{whole} in config.json has no text_config that is a JSON object (found {inner!r:.80})")
    kind = inner.get("model_type")
    if kind not in kinds:
        raise ModelError(f"text_config of {whole} is of model_type {kind!r:.80}; supported: {', '.join(kinds)}")
    shared = {key: config[key] for key in _OF_THE_WHOLE if config.get(key) is not None}
    return {**inner, **shared, "architectures": [kinds[kind]]}


def text_name(name: str) -> str | None:
    """Return what a tensor is called in a model of text alone, or None if it belongs to another part."""
    if name.removeprefix("model.").startswith(_OTHER_PARTS):
        return None
    for prefix, plain in _TEXT_PREFIXES.items():
        if name.startswith(prefix):
            return plain + name.removeprefix(prefix)
    return name


def other_parts(config: Mapping[str, Any]) -> list[str]:
    """Return the fields of a parsed config.json that describe what is not served, as vision_config does."""
    return sorted(key for key in config if key.endswith("_config") and key != "text_config" and "quant" not in key)
