"""A tiny model as llama.cpp's converter would write it: read back, it gives the ids of its safetensors."""

from pathlib import Path

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.golden.oracles import FOLDER, check_equal, load
from tests.support.local_engine import LocalEngine, make_config

GEMMA3 = FOLDER / "models" / "gemma3"
_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
# The oracle scales queries by 1 / sqrt(20); a GGUF file of this size has 1 / sqrt(32).
_QUERY_FACTOR = (32 / 20) ** 0.5


def gguf_name(name: str) -> str:
    module = name.removesuffix(".weight")
    if module in _OUTER:
        return f"{_OUTER[module]}.weight"
    _, _, layer, part = module.split(".", 3)
    return f"blk.{layer}.{_NAMES[part]}.weight"


def write_gemma3(path: Path) -> None:
    """Write the tiny Gemma 3 with the keys, names and norms of llama.cpp, and a vocabulary of single characters."""
    writer = gguf.GGUFWriter(path, "gemma3")
    writer.add_block_count(3)
    writer.add_context_length(512)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(144)
    writer.add_head_count(4)
    writer.add_head_count_kv(1)
    writer.add_key_length(32)
    writer.add_value_length(32)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_sliding_window(24)
    writer.add_uint32("gemma3.attention.sliding_window_pattern", 2)
    writer.add_rope_freq_base(10000.0)
    writer.add_float32("gemma3.rope.freq_base_swa", 100.0)
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(2.0)
    tokens = ["<pad>", "<bos>", "<eos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += [chr(0x4E00 + index) for index in range(512 - len(tokens))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types([3, 3, 3, 2, *[6] * 256, *[1] * 252])
    writer.add_add_space_prefix(False)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, values in load_file(GEMMA3 / "model.safetensors").items():
        stored = values + np.float32(1) if "norm" in name else values
        writer.add_tensor(gguf_name(name), stored * np.float32(_QUERY_FACTOR) if "q_norm" in name else stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_gemma3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUARTET_CACHE_DIR", str(tmp_path / "cache"))
    write_gemma3(tmp_path / "tiny.gguf")
    oracles = load(GEMMA3 / "oracle.json")
    engine = LocalEngine(make_config(tmp_path / "tiny.gguf", max_total_tokens=4096))
    check_equal(oracles, engine.generate([one.prompt_ids for one in oracles], 24))
