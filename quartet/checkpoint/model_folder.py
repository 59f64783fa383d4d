"""Reads the small JSON files of a model folder in Hugging Face layout. Imports nothing heavy.

Code in a model repository (`auto_map`) is never read; an unsupported architecture is refused.
"""

from contextlib import suppress
from pathlib import Path
from typing import Any

from quartet.checkpoint.bounded_json import FEW_VALUES, MAX_BYTES, decode_json
from quartet.checkpoint.families import SUPPORTED_ARCHITECTURES, refusal
from quartet.checkpoint.readable import open_file, read_text
from quartet.wire.errors import ModelError
from quartet.wire.sampling_bounds import SAMPLING_BOUNDS

_SAMPLING_KEYS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def read_json(path: Path, max_values: int = FEW_VALUES) -> dict[str, Any]:
    """Return the JSON object in `path`, or {} if there is no such file; raises ModelError if it cannot be read."""
    try:
        with open_file(path) as file:
            content = decode_json(file.read(MAX_BYTES + 1), max_values)
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ModelError(f"{path} is damaged ({error}); download the model again") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} does not hold a JSON object; download the model again")
    return content


def architecture(config: dict[str, Any], folder: Path) -> str:
    """Return the model's architecture; raises ModelError naming the supported ones for any other."""
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    if name not in SUPPORTED_ARCHITECTURES:
        raise ModelError(f"{folder}: {refusal(str(name or config.get('model_type')))}")
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


def eos_token_ids(*files: tuple[Path, dict[str, Any]]) -> set[int]:
    """Return the ids that config.json and generation_config.json, each with its path, call end of sequence.

    Raises ModelError for anything but an id, a list of ids or null.
    """
    ids: set[int] = set()
    for path, content in files:
        value = content.get("eos_token_id")
        for index in value if isinstance(value, list) else [] if value is None else [value]:
            if not isinstance(index, int) or isinstance(index, bool):
                raise ModelError(f"{path} has no usable eos_token_id (found {value!r})")
            ids.add(index)
    return ids


def chat_template(folder: Path, tokenizer: dict[str, Any]) -> str | None:
    """Return the model's chat template from whichever file has it, the `default` one of several, or None.

    Raises ModelError for one that is no text.
    """
    jinja = folder / "chat_template.jinja"
    with suppress(FileNotFoundError):
        return read_text(jinja)
    path, found = folder / "chat_template.json", read_json(folder / "chat_template.json").get("chat_template")
    if not found:
        path, found = folder / "tokenizer_config.json", tokenizer.get("chat_template")
    if isinstance(found, list) and found and all(map(_is_named, found)):
        named = {entry["name"]: entry.get("template") for entry in found}
        found = named.get("default", next(iter(named.values())))
        if found is None:
            raise _unusable(path, named)
    if found is None or isinstance(found, str):
        return found or None
    raise _unusable(path, found)


def _is_named(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("name"), str)


def _unusable(path: Path, found: Any) -> ModelError:
    return ModelError(f"{path} has no usable chat_template (found {found!r:.80}); give one with --chat-template")
