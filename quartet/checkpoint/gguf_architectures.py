"""The table of architectures of GGUF files: what each is in Hugging Face's terms, and where its tensors are.

The names are those of llama.cpp. An architecture of the same parts as others is one entry; what its keys say beyond
those of all is read in gguf_config.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from quartet.wire.errors import ModelError

ROPE_FACTORS = "rope_freqs.weight"
LOCAL_BASE = "rope.freq_base_swa"
WINDOW_PATTERN = "attention.sliding_window_pattern"

_OUTER_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_NORMS_ON_BOTH_SIDES = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}


@dataclass(frozen=True, slots=True)
class GgufArchitecture:
    """`name` and `model_type` are those of config.json."""

    name: str
    model_type: str
    is_permuted: bool = False
    """Rows of q and k are in the order in which neighbouring pairs are rotated."""
    norm_names: Mapping[str, str] = field(default_factory=dict)
    """Norms of a layer that others do not have, or have elsewhere."""
    has_added_one: bool = False
    """Norms hold one more than in Hugging Face's files, where it is added to them."""
    honoured: tuple[str, ...] = ()
    """Keys of gguf_fields.NEUTRAL that are read."""

    def hf_name(self, name: str) -> str:
        """Return the Hugging Face name of the GGUF tensor `name`; raises ModelError if there is none."""
        if name in _OUTER_NAMES:
            return _OUTER_NAMES[name]
        parts, names = name.split("."), {**_LAYER_NAMES, **self.norm_names}
        if len(parts) == 4 and parts[0] == "blk" and parts[1].isdigit() and parts[2] in names:
            return f"model.layers.{parts[1]}.{names[parts[2]]}.{parts[3]}"
        raise ModelError(f"the GGUF file holds the tensor {name!r}, which no supported architecture has")


ARCHITECTURES = {
    "llama": GgufArchitecture("LlamaForCausalLM", "llama", is_permuted=True),
    "mistral": GgufArchitecture("MistralForCausalLM", "mistral"),
    "qwen2": GgufArchitecture("Qwen2ForCausalLM", "qwen2"),
    "qwen3": GgufArchitecture("Qwen3ForCausalLM", "qwen3"),
    "gemma3": GgufArchitecture(
        "Gemma3ForCausalLM",
        "gemma3_text",
        norm_names=_NORMS_ON_BOTH_SIDES,
        has_added_one=True,
        honoured=(LOCAL_BASE, WINDOW_PATTERN),
    ),
}
