"""Kinds of attention: the heads of each layer, whether it sees a window of tokens only, how it rotates q and k.

What config.json leaves out is taken as transformers takes it. Called by spec.py.
"""

from dataclasses import dataclass
from typing import Any

from quartet.checkpoint.config_fields import size, switch
from quartet.checkpoint.families import FAMILIES, Family
from quartet.checkpoint.rotary import RopeSpec, rope_spec
from quartet.wire.errors import ModelError

_SLIDING, _LINEAR = "sliding_attention", "linear_attention"


@dataclass(frozen=True, slots=True)
class Heads:
    """The heads of one layer, or those of one rank: of queries, of keys and values, and the numbers of a head. Without
    `has_values` a token's values are its keys as they are projected, before norm and rotation."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    has_values: bool = True

    @property
    def query_size(self) -> int:
        """Numbers of a token's queries."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Numbers of a token's keys, and of its values."""
        return self.num_kv_heads * self.head_dim

    @property
    def size(self) -> int:
        """Numbers that are projected of a token: queries, keys, and values if there are any."""
        return self.query_size + (1 + self.has_values) * self.kv_size


@dataclass(frozen=True, slots=True)
class AttentionKind:
    """What layers of one kind have in common. `rope`: None where nothing is rotated. `window`: a token sees itself and
    the window - 1 tokens before it; 0 for all."""

    heads: Heads
    rope: RopeSpec | None
    window: int = 0


def attention_kinds(config: dict[str, Any], family: Family, context_length: int) -> tuple[AttentionKind, ...]:
    """Return the kind of each layer of a model that is run with at most `context_length` tokens.

    `config` has the family's defaults. Raises ModelError for settings that are not supported."""
    windows, unrotated, kinds = _windows(config, family), _unrotated_layers(config, family), list[AttentionKind]()
    for layer, (window, own) in enumerate(zip(windows, _layer_fields(config, family, windows), strict=True)):
        heads = _heads({**config, **own}, has_values=window > 0 or not switch(config, "attention_k_eq_v"))
        rope = rope_spec(config, heads.head_dim, context_length, family.honoured, is_local=window > 0)
        # A window that reaches as far as the context is none.
        bound = window if window < context_length else 0
        kinds.append(AttentionKind(heads, None if layer in unrotated else rope, bound))
    return tuple(kinds)


def _layer_fields(config: dict[str, Any], family: Family, windows: tuple[int, ...]) -> list[dict[str, Any]]:
    """Return the fields of each layer that replace those of all: per_layer_config, or what the layers without a window
    have in its absence."""
    if "per_layer_config" not in family.honoured:
        return [{}] * len(windows)
    if windows[-1]:
        raise ModelError("layer_types in config.json must end with full_attention for this architecture")
    fields, found = {"head_dim": config["global_head_dim"]}, config.get("per_layer_config")
    if switch(config, "attention_k_eq_v") and config.get("num_global_key_value_heads") is not None:
        fields["num_key_value_heads"] = config["num_global_key_value_heads"]
    if found is None:
        return [{} if window else fields for window in windows]
    try:
        layers = {int(layer): dict(own) for layer, own in found.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise ModelError(
            f"per_layer_config in config.json is no object for each layer (found {found!r:.80})"
        ) from error
    unknown = sorted({key for own in layers.values() for key in own} - {"head_dim", "num_key_value_heads"})
    if unknown:
        raise ModelError(f"{unknown[0]} of per_layer_config in config.json is not supported")
    return [layers.get(layer, {}) for layer in range(len(windows))]


def _heads(config: dict[str, Any], has_values: bool) -> Heads:
    hidden, heads = size(config, "hidden_size"), size(config, "num_attention_heads")
    if config.get("head_dim") is None and hidden % heads:
        raise ModelError(
            f"hidden_size {hidden} in config.json is no multiple of {heads} heads, and there is no head_dim"
        )
    head_dim, kv_heads = size(config, "head_dim", hidden // heads), size(config, "num_key_value_heads", heads)
    if head_dim % 2:
        raise ModelError(f"head_dim {head_dim} in config.json is odd; rotary embedding needs pairs")
    if heads % kv_heads:
        raise ModelError(f"{heads} heads are no multiple of {kv_heads} KV heads")
    return Heads(heads, kv_heads, head_dim, has_values)


def window_limit(config: dict[str, Any]) -> int | None:
    """Return the window to which the context is held, for a family whose layers have none in transformers; else None.

    Within it, full attention is the same thing. Raises ModelError for kinds of attention that are not supported."""
    architecture = (config.get("architectures") or [None])[0]
    family = FAMILIES.get(architecture, Family(""))
    config = family.completed(config)
    kinds, window = _layer_types(config, family), _window(config)
    if family.windows != "none" or (kinds is not None and _SLIDING not in kinds):
        return None
    return window or None


def _windows(config: dict[str, Any], family: Family) -> tuple[int, ...]:
    """Return the window of each layer, 0 for none."""
    layers, kinds, window = size(config, "num_hidden_layers"), _layer_types(config, family), _window(config)
    if family.windows == "none" or not window:
        return (0,) * layers
    if kinds is not None:
        if len(kinds) < layers:
            raise ModelError(f"layer_types in config.json names {len(kinds)} of {layers} layers")
        return tuple(window * (kinds[layer] == _SLIDING) for layer in range(layers))
    first, pattern = 0, layers + 1
    if family.windows == "last":
        first = size(config, "max_window_layers", 28, least=0)
    if family.windows == "pattern":
        pattern = size(config, "sliding_window_pattern")
    return tuple(window * (layer >= first and (layer + 1) % pattern > 0) for layer in range(layers))


def _window(config: dict[str, Any]) -> int:
    window = config.get("sliding_window")
    if window is not None and type(window) is not int:
        raise ModelError(f"sliding_window {window} in config.json is not supported; only a number of tokens is")
    return max(window or 0, 0) if switch(config, "use_sliding_window", True) else 0


def _layer_types(config: dict[str, Any], family: Family) -> list[Any] | None:
    kinds, served = config.get("layer_types"), {"full_attention", _SLIDING}
    if kinds is None:
        return None
    if not isinstance(kinds, list):
        raise ModelError(f"layer_types in config.json is no list (found {kinds!r:.80})")
    if family.is_hybrid:
        served.add(_LINEAR)
    unknown = sorted({str(kind) for kind in kinds} - served)
    if unknown:
        raise ModelError(f"layer_types in config.json names {unknown[0]}, which is not supported")
    if _SLIDING in kinds and not _window(config):
        raise ModelError("layer_types in config.json names sliding_attention, but sliding_window is not set")
    return kinds


def _unrotated_layers(config: dict[str, Any], family: Family) -> frozenset[int]:
    """Return the layers that no_rope_layers marks with 0, or else every no_rope_layer_interval-th."""
    if "no_rope_layers" not in family.honoured:
        return frozenset()
    layers, marks = size(config, "num_hidden_layers"), config.get("no_rope_layers")
    if marks is None:
        interval = size(config, "no_rope_layer_interval")
        return frozenset(range(interval - 1, layers, interval))
    if not isinstance(marks, list) or len(marks) < layers or any(mark not in (0, 1) for mark in marks):
        raise ModelError(f"no_rope_layers in config.json must be a 0 or 1 for each of {layers} layers")
    return frozenset(layer for layer in range(layers) if not marks[layer])
