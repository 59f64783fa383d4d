"""Reads the small JSON files of a model folder in Hugging Face layout. Imports json alone.

Code in a model repository (`auto_map`) is never read; an unsupported architecture is refused.
"""

import json
from pathlib import Path
from typing import Any

from quartet.wire.config import SUPPORTED_ARCHITECTURES
from quartet.wire.errors import ModelError
from quartet.wire.sampling_bounds import SAMPLING_BOUNDS

_SAMPLING_KEYS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in `path`, or {} if there is no such file; raises ModelError if it is damaged."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is damaged ({error}); download the model again") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} does not hold a JSON object; download the model again")
    return content


def architecture(config: dict[str, Any], folder: Path) -> str:
    """Return the model's architecture; raises ModelError naming the supported ones for any other."""
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    if name not in SUPPORTED_ARCHITECTURES:
        found = name or f"model type {config.get('model_type')!r}"
        raise ModelError(f"{folder} is a {found}; supported are {', '.join(SUPPORTED_ARCHITECTURES)}")
    return str(name)


def default_sampling(generation: dict[str, Any]) -> dict[str, float]:
    """Return the sampling parameters that generation_config.json, or an old config.json, sets.

    Raises ModelError for a value that no request may have: each request without one of its own would be refused."""
    found: dict[str, float] = {}
    for key in _SAMPLING_KEYS:
        value = generation.get(key)
        if value is None:
            continue
        low, high, _ = SAMPLING_BOUNDS[key]
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
        if not is_number or (key == "top_p" and value == 0):
            raise ModelError(f"generation_config.json sets {key} to {value!r}, which is not from {low} to {high}")
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
    if jinja.is_file():
        return jinja.read_text(encoding="utf-8")
    found = read_json(folder / "chat_template.json").get("chat_template") or tokenizer.get("chat_template")
    if isinstance(found, list):
        named = {entry["name"]: entry["template"] for entry in found if isinstance(entry, dict) and "template" in entry}
        found = named.get("default") or next(iter(named.values()), None)
    return found if isinstance(found, str) else None
