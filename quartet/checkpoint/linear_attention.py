"""Linear attention by the gated delta rule: its sizes, which layers have it, and its tensors in a checkpoint.

Such a layer keeps no keys and values of past tokens but a state of fixed size for each sequence.
"""

from dataclasses import dataclass
from typing import Any

from quartet.checkpoint.config_fields import size
from quartet.wire.errors import ModelError

STATE_ITEM_BYTES = 4
"""The states of the delta rule are float32 whatever the model's dtype."""


@dataclass(frozen=True, slots=True)
class LinearSpec:
    """Hk key heads of Dk, Hv value heads of Dv, several of which share a key head; a causal convolution over
    `conv_width` tokens of each channel before."""

    num_key_heads: int
    num_value_heads: int
    key_dim: int
    value_dim: int
    conv_width: int

    @property
    def channels(self) -> int:
        """Channels of the convolution: Hk Dk of q, as many of k, Hv Dv of v."""
        return 2 * self.num_key_heads * self.key_dim + self.values

    @property
    def values(self) -> int:
        """Hv Dv."""
        return self.num_value_heads * self.value_dim

    @property
    def projections(self) -> tuple[int, int, int, int]:
        """Outputs of a layer's input projections: channels, output gates, Hv update rates, Hv decays."""
        return self.channels, self.values, self.num_value_heads, self.num_value_heads

    def state_bytes(self, item_bytes: int) -> int:
        """Return the bytes of one sequence's state in one layer, with inputs of the convolution of `item_bytes`."""
        matrices = self.num_value_heads * self.key_dim * self.value_dim
        return matrices * STATE_ITEM_BYTES + self.conv_width * self.channels * item_bytes

    def shapes(self, hidden: int) -> dict[str, tuple[int, ...]]:
        """Return name and shape of the tensors of one layer."""
        names = "in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a"
        shapes: dict[str, tuple[int, ...]] = {
            f"linear_attn.{name}.weight": (rows, hidden) for name, rows in zip(names, self.projections, strict=True)
        }
        shapes["linear_attn.conv1d.weight"] = (self.channels, 1, self.conv_width)
        shapes["linear_attn.A_log"] = shapes["linear_attn.dt_bias"] = (self.num_value_heads,)
        shapes["linear_attn.norm.weight"] = (self.value_dim,)
        shapes["linear_attn.out_proj.weight"] = (hidden, self.values)
        return shapes


def linear_spec(config: dict[str, Any]) -> LinearSpec:
    """Return the sizes that a parsed config.json names. Raises ModelError for those that do not fit together."""
    spec = LinearSpec(
        num_key_heads=size(config, "linear_num_key_heads"),
        num_value_heads=size(config, "linear_num_value_heads"),
        key_dim=size(config, "linear_key_head_dim"),
        value_dim=size(config, "linear_value_head_dim"),
        conv_width=size(config, "linear_conv_kernel_dim", least=2),
    )
    if spec.num_value_heads % spec.num_key_heads:
        raise ModelError(
            f"linear_num_value_heads {spec.num_value_heads} in config.json is no multiple of "
            f"linear_num_key_heads {spec.num_key_heads}"
        )
    return spec


def linear_layers(config: dict[str, Any]) -> frozenset[int]:
    """Return the layers that layer_types calls linear, or else all but every full_attention_interval-th."""
    layers, kinds = size(config, "num_hidden_layers"), config.get("layer_types")
    if kinds is None:
        interval = size(config, "full_attention_interval")
        return frozenset(layer for layer in range(layers) if (layer + 1) % interval)
    if not isinstance(kinds, list) or len(kinds) < layers:
        raise ModelError(f"layer_types in config.json must be a list of {layers} kinds")
    return frozenset(layer for layer in range(layers) if kinds[layer] == "linear_attention")
