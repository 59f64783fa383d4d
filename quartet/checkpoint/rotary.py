"""The rotary settings of config.json in all their spellings: honoured, or refused by name.

Older configs have `rope_theta` beside `rope_scaling` (whose kind is `type` or `rope_type`); newer ones have both in
`rope_parameters`, perhaps once per kind of layer.
"""

from dataclasses import dataclass
from typing import Any

from quartet.checkpoint.config_fields import number, refuse_unserved, size
from quartet.wire.errors import ModelError

# The settings that each kind has; transformers ignores any other, which hides a mistake in config.json.
_KINDS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}
_OF_EVERY_KIND = ("rope_type", "type", "rope_theta", "original_max_position_embeddings")
# What a kind without the setting does is what the setting does at this value.
_NEUTRAL = {"factor": (1,), "attention_factor": (1,), "partial_rotary_factor": (1,)}
_LAYER_KINDS = ("full_attention", "sliding_attention")


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary position embedding. `kind`: default, linear or llama3; the last four fields belong to llama3."""

    theta: float
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 0


def rope_spec(config: dict[str, Any]) -> RopeSpec:
    """Return the rotary embedding that a parsed config.json describes; raises ModelError if it is not supported."""
    settings = _settings(config)
    theta = number(settings, "rope_theta", number(config, "rope_theta", 10000.0))
    kind = settings.get("rope_type", "default")
    if kind not in _KINDS:
        raise ModelError(f"rope scaling {kind} is not supported; default, linear and llama3 are")
    others = {key: value for key, value in settings.items() if key not in (*_OF_EVERY_KIND, *_KINDS[kind])}
    refuse_unserved(others, {key: _NEUTRAL.get(key, ()) for key in others}, f"config.json, rope scaling {kind}")
    if kind == "linear":
        return RopeSpec(theta, kind, number(settings, "factor"))
    return _llama3(theta, {**config, **settings}) if kind == "llama3" else RopeSpec(theta)


def _llama3(theta: float, settings: dict[str, Any]) -> RopeSpec:
    low, high = number(settings, "low_freq_factor"), number(settings, "high_freq_factor")
    if high <= low:
        raise ModelError(f"high_freq_factor {high} in config.json must be larger than low_freq_factor {low}")
    original = size(settings, "original_max_position_embeddings")
    return RopeSpec(theta, "llama3", number(settings, "factor"), low, high, original)


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of either spelling, with their kind under rope_type."""
    older, newer = (_section(config, name) for name in ("rope_scaling", "rope_parameters"))
    twice = sorted(key for key in older.keys() & newer.keys() if older[key] != newer[key])
    if twice:
        raise ModelError(f"rope_scaling and rope_parameters in config.json contradict each other in {twice[0]}")
    return {**older, **newer}


def _section(config: dict[str, Any], name: str) -> dict[str, Any]:
    section = config.get(name) or {}
    if not isinstance(section, dict):
        raise ModelError(f"{name} in config.json is not a JSON object (found {section!r})")
    if any(kind in section for kind in _LAYER_KINDS):
        section = _of_all_layers(name, section)
    found = {key: value for key, value in section.items() if value is not None}
    kinds = {key: found.pop(key) for key in ("rope_type", "type") if key in found}
    if len(set(map(str, kinds.values()))) > 1:
        raise ModelError(f"{name} in config.json names two kinds: rope_type {kinds['rope_type']}, type {kinds['type']}")
    if not kinds:
        if found.keys() - {"rope_theta", "partial_rotary_factor"}:
            raise ModelError(f"{name} in config.json names no rope_type (found {', '.join(sorted(found))})")
        return found
    return {**found, "rope_type": str(next(iter(kinds.values())))}


def _of_all_layers(name: str, section: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that are given once per kind of layer, if they are the same for all kinds."""
    kinds = {kind: settings for kind, settings in section.items() if settings is not None}
    settings: Any = next(iter(kinds.values()), {})
    if not isinstance(settings, dict) or any(other != settings for other in kinds.values()):
        raise ModelError(f"{name} in config.json differs between {' and '.join(kinds)}, which is not supported")
    return settings
