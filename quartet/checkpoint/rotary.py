"""The rotary settings of config.json in all their spellings: honoured, or refused by name.

Older configs have `rope_theta` beside `rope_scaling` (whose kind is `type` or `rope_type`); newer ones have both in
`rope_parameters`, perhaps once per kind of layer.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

from quartet.checkpoint.config_fields import number, refuse_unserved, size, switch
from quartet.wire.errors import ModelError

# The settings that each kind has; transformers ignores any other, which hides a mistake in config.json.
KINDS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    "longrope": ("factor", "attention_factor", "short_factor", "long_factor"),
    "proportional": ("factor", "partial_rotary_factor"),
}
OTHER_NAMES = {"su": "longrope"}
_OF_EVERY_KIND = ("rope_type", "type", "rope_theta", "original_max_position_embeddings")
# What a kind without the setting does is what the setting does at this value.
_NEUTRAL = {"factor": (1,), "attention_factor": (1,), "partial_rotary_factor": (1,)}
_LAYER_KINDS = ("full_attention", "sliding_attention")
LOCAL_BASE = "rope_local_base_freq"
"""The base of layers with a window, for families that honour it; they may also have settings for each kind of layer."""


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary position embedding. `kind`: default, linear, llama3, yarn, longrope or proportional.

    `factor` belongs to all but default and longrope, `original_context` to llama3 and yarn, the fields after those to
    the kind in their comment. The last two are for every kind."""

    theta: float
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    original_context: int = 0
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    is_truncated: bool = True  # yarn
    divisors: tuple[float, ...] = ()  # longrope: of each frequency
    turning_share: float = 1.0  # proportional: of the frequencies, the first ones; the others are zero
    attention_factor: float = 1.0
    """On cosines and sines."""
    rotated_share: float = 1.0
    """Of each head's dimensions; the first ones are rotated, the others are not."""

    def rotary_dim(self, head_dim: int) -> int:
        """Return how many dimensions of a head are rotated."""
        return int(head_dim * self.rotated_share)

    def head_order(self, head_dim: int) -> list[int] | None:
        """Return the order of a head's dimensions in which the two of each pair are head_dim / 2 apart, unrotated ones
        paired among themselves, as the operations rotate them; None if the checkpoint has that order.

        q K^T stays the same if q and k are put into one order."""
        rotary = self.rotary_dim(head_dim)
        if rotary == head_dim:
            return None
        low, middle = rotary // 2, rotary + (head_dim - rotary) // 2
        return [*range(low), *range(rotary, middle), *range(low, rotary), *range(middle, head_dim)]


def rope_spec(
    config: dict[str, Any],
    head_dim: int,
    context_length: int,
    honoured: Collection[str] = (),
    is_local: bool = False,
) -> RopeSpec:
    """Return the rotary embedding that a parsed config.json describes, for contexts of at most `context_length`.

    `honoured` may name partial_rotary_factor, and LOCAL_BASE: then layers with a window (`is_local`) have their own.
    Raises ModelError if the settings are not supported."""
    settings = _settings(config, honoured, is_local)
    base = LOCAL_BASE if is_local and LOCAL_BASE in honoured else "rope_theta"
    theta = number(settings, "rope_theta", number(config, base, 10000.0))
    kind = settings.get("rope_type", "default")
    if kind not in KINDS:
        raise ModelError(f"rope scaling {kind} is not supported; {', '.join(KINDS)} are")
    served = (*_OF_EVERY_KIND, *KINDS[kind], *honoured)
    others = {key: value for key, value in settings.items() if key not in served}
    refuse_unserved(others, {key: _NEUTRAL.get(key, ()) for key in others}, f"config.json, rope scaling {kind}")
    settings = {**config, **settings}
    if kind == "proportional":
        share = _rotated_share(settings, head_dim)
        return RopeSpec(theta, kind=kind, factor=number(settings, "factor", 1.0), turning_share=share)
    rope = RopeSpec(theta, rotated_share=_rotated_share(settings, head_dim) if honoured else 1.0)
    if kind == "linear":
        return replace(rope, kind=kind, factor=number(settings, "factor"))
    if kind == "llama3":
        return _llama3(rope, settings)
    if kind == "yarn":
        return _yarn(rope, settings)
    # Dynamic scaling begins beyond max_position_embeddings, which no context exceeds: there it is the default.
    return _longrope(rope, settings, head_dim, context_length) if kind == "longrope" else rope


def extended_context(config: dict[str, Any], length: int, honoured: Collection[str] = ()) -> int:
    """Return the context of a model of `length` positions with its scaling: yarn may name the length before it."""
    settings = _settings(config, honoured)
    if settings.get("rope_type") != "yarn":
        return length
    original = size(settings, "original_max_position_embeddings", length)
    return max(length, int(original * number(settings, "factor", length / original)))


def _rotated_share(settings: dict[str, Any], head_dim: int) -> float:
    share = number(settings, "partial_rotary_factor", 1.0)
    rotary = int(head_dim * share)
    if share > 1 or not rotary or rotary % 2:
        raise ModelError(f"partial_rotary_factor {share} in config.json rotates {rotary} of {head_dim} dimensions")
    return share


def _yarn(rope: RopeSpec, settings: dict[str, Any]) -> RopeSpec:
    length = size(settings, "max_position_embeddings")
    original = size(settings, "original_max_position_embeddings", length)
    factor = number(settings, "factor", length / original)
    if rope.theta <= 1:
        raise ModelError(f"rope_theta {rope.theta} in config.json must be larger than 1 for rope scaling yarn")
    scales = [settings.get("mscale"), settings.get("mscale_all_dim")]
    attention = 1.0 if factor <= 1 else 0.1 * math.log(factor) + 1.0
    if all(scales) and factor > 1:
        above, below = (0.1 * number(settings, key) * math.log(factor) + 1.0 for key in ("mscale", "mscale_all_dim"))
        attention = above / below
    return replace(
        rope,
        kind="yarn",
        factor=factor,
        original_context=original,
        beta_fast=number(settings, "beta_fast", 32.0),
        beta_slow=number(settings, "beta_slow", 1.0),
        is_truncated=switch(settings, "truncate", True),
        attention_factor=number(settings, "attention_factor", attention),
    )


def _longrope(rope: RopeSpec, settings: dict[str, Any], head_dim: int, context_length: int) -> RopeSpec:
    """Take the long factors if a context may exceed the original one, for all lengths: cached keys stay as they are.

    transformers takes them once a sequence is longer, and leaves the keys before that as they are."""
    length = size(settings, "max_position_embeddings")
    original = size(settings, "original_max_position_embeddings", length, least=2)
    factor = number(settings, "factor", length / original)
    attention = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    key = "long_factor" if context_length > original else "short_factor"
    divisors, pairs = settings.get(key), rope.rotary_dim(head_dim) // 2
    if not isinstance(divisors, list) or len(divisors) != pairs:
        raise ModelError(f"{key} in config.json must be a list of {pairs} numbers")
    values = tuple(number({key: divisor}, key) for divisor in divisors)
    attention = number(settings, "attention_factor", attention)
    return replace(rope, kind="longrope", divisors=values, attention_factor=attention)


def _llama3(rope: RopeSpec, settings: dict[str, Any]) -> RopeSpec:
    low, high = number(settings, "low_freq_factor"), number(settings, "high_freq_factor")
    if high <= low:
        raise ModelError(f"high_freq_factor {high} in config.json must be larger than low_freq_factor {low}")
    original = size(settings, "original_max_position_embeddings")
    factor = number(settings, "factor")
    return replace(
        rope, kind="llama3", factor=factor, low_freq_factor=low, high_freq_factor=high, original_context=original
    )


def _settings(config: dict[str, Any], honoured: Collection[str] = (), is_local: bool = False) -> dict[str, Any]:
    """Return the settings of either spelling, with their kind under rope_type."""
    layer_kind = _LAYER_KINDS[is_local] if LOCAL_BASE in honoured else ""
    older, newer = (_section(config, name, layer_kind) for name in ("rope_scaling", "rope_parameters"))
    twice = sorted(key for key in older.keys() & newer.keys() if older[key] != newer[key])
    if twice:
        raise ModelError(f"rope_scaling and rope_parameters in config.json contradict each other in {twice[0]}")
    return {**older, **newer}


def _section(config: dict[str, Any], name: str, layer_kind: str) -> dict[str, Any]:
    """Return the settings under `name`; of the layers of `layer_kind`, if a family distinguishes them."""
    section = config.get(name) or {}
    if not isinstance(section, dict):
        raise ModelError(f"{name} in config.json is not a JSON object (found {section!r})")
    if any(kind in section for kind in _LAYER_KINDS):
        section = (section.get(layer_kind) or {}) if layer_kind else _of_all_layers(name, section)
        if not isinstance(section, dict):
            raise ModelError(f"{layer_kind} of {name} in config.json is not a JSON object (found {section!r:.80})")
    elif layer_kind == _LAYER_KINDS[True]:
        # Settings for one kind alone are those of full attention.
        return {}
    found = {key: value for key, value in section.items() if value is not None}
    kinds = {key: found.pop(key) for key in ("rope_type", "type") if key in found}
    if len(set(map(str, kinds.values()))) > 1:
        raise ModelError(f"{name} in config.json names two kinds: rope_type {kinds['rope_type']}, type {kinds['type']}")
    if not kinds:
        if found.keys() - {"rope_theta", "partial_rotary_factor"}:
            raise ModelError(f"{name} in config.json names no rope_type (found {', '.join(sorted(found))})")
        return found
    kind = str(next(iter(kinds.values())))
    return {**found, "rope_type": OTHER_NAMES.get(kind, kind)}


def _of_all_layers(name: str, section: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that are given once per kind of layer, if they are the same for all kinds."""
    kinds = {kind: settings for kind, settings in section.items() if settings is not None}
    settings: Any = next(iter(kinds.values()), {})
    if not isinstance(settings, dict) or any(other != settings for other in kinds.values()):
        raise ModelError(f"{name} in config.json differs between {' and '.join(kinds)}, which is not supported")
    return settings
