"""Reads the small JSON files of a model folder in Hugging Face layout. Imports nothing heavy.

Code in a model repository (`auto_map`) is never read; an unsupported architecture is refused.
"""

import json
import math
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from quartet.checkpoint.readable import check_readable, open_file, read_text
from quartet.wire.config import SUPPORTED_ARCHITECTURES
from quartet.wire.errors import ModelError

_SAMPLING_KEYS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in `path`, or {} if there is no such file; raises ModelError if it cannot be read."""
    try:
        with open_file(path) as file:
            content = json.loads(file.read())
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is damaged ({error}); download the model again") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} does not hold a JSON object; download the model again")
    return content


def positive_int(config: dict[str, Any], key: str, folder: Path) -> int:
    """Return `config[key]`; raises ModelError if it is absent or no positive number."""
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise ModelError(f"{folder}/config.json has no usable {key} (found {value!r})")
    return value


def architecture(config: dict[str, Any], folder: Path) -> str:
    """Return the model's architecture; raises ModelError naming the supported ones for any other."""
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    if name not in SUPPORTED_ARCHITECTURES:
        found = name or f"model type {config.get('model_type')!r}"
        raise ModelError(f"{folder} is a {found}; supported are {', '.join(SUPPORTED_ARCHITECTURES)}")
    return str(name)


def context_length(config: dict[str, Any], folder: Path) -> int:
    """Return how many tokens the model may see at once.

    A model trained with a sliding window is held to the window: within it, full attention is the same thing.
    """
    length = positive_int(config, "max_position_embeddings", folder)
    window = config.get("sliding_window")
    uses_window = config.get("use_sliding_window", "mistral" in str(config.get("model_type")))
    return min(length, window) if uses_window and isinstance(window, int) and window > 0 else length


def default_sampling(generation: dict[str, Any]) -> dict[str, float]:
    """Return the sampling parameters that generation_config.json sets to a finite number."""
    found: dict[str, float] = {}
    for key in _SAMPLING_KEYS:
        value = generation.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            found[key] = value
    return found


def eos_token_ids(
    config: dict[str, Any], generation: dict[str, Any], tokenizer: dict[str, Any], tokenizer_json: Path
) -> tuple[int, ...]:
    """Return every id that any of the files calls end of sequence, ascending."""
    ids: set[int] = set()
    for source in (generation, config):
        value = source.get("eos_token_id")
        ids.update(i for i in (value if isinstance(value, list) else [value]) if isinstance(i, int))
    token = tokenizer.get("eos_token")
    text = token.get("content") if isinstance(token, dict) else token
    if isinstance(text, str):
        ids.update(_added_token_ids(text, tokenizer, tokenizer_json))
    return tuple(sorted(ids))


def _added_token_ids(text: str, tokenizer: dict[str, Any], tokenizer_json: Path) -> list[int]:
    """Return the id of the added token `text`; the big tokenizer.json is read only if the small file lacks it."""
    decoder = tokenizer.get("added_tokens_decoder")
    if isinstance(decoder, dict):
        return [int(i) for i, entry in decoder.items() if isinstance(entry, dict) and entry.get("content") == text]
    added = read_json(tokenizer_json).get("added_tokens") or []
    return [entry["id"] for entry in added if entry.get("content") == text]


def chat_template(folder: Path, tokenizer: dict[str, Any]) -> str | None:
    """Return the model's chat template from whichever file has it, the `default` one of several, or None."""
    jinja = folder / "chat_template.jinja"
    with suppress(FileNotFoundError):
        return read_text(jinja)
    found = read_json(folder / "chat_template.json").get("chat_template") or tokenizer.get("chat_template")
    if isinstance(found, list):
        named = {entry["name"]: entry["template"] for entry in found if isinstance(entry, dict) and "template" in entry}
        found = named.get("default") or next(iter(named.values()), None)
    return found if isinstance(found, str) else None


def check_weights(folder: Path) -> None:
    """Raise ModelError unless every safetensors file that the model needs is there and can be read."""
    index = read_json(folder / "model.safetensors.index.json").get("weight_map")
    if isinstance(index, dict):
        names = sorted({str(name) for name in index.values()})
    else:
        names = sorted(name for name in os.listdir(folder) if name.endswith(".safetensors"))
        if not names:
            raise ModelError(f"{folder} has no *.safetensors weights; other formats are not loaded, for safety")
    check_readable(folder / name for name in names)
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        raise ModelError(f"{folder} lacks {missing[0]} ({len(missing)} files missing); download the model again")
