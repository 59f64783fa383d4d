"""gpt-oss: what its config.json says of layers, experts and MXFP4, what is refused, and where its answers end."""

from pathlib import Path
from typing import Any

import pytest
from model_folders import write_json

from quartet.checkpoint.quantization import has_cpu_compiler
from quartet.checkpoint.ranks import check_ranks
from quartet.checkpoint.spec import expected_shapes, parse_spec
from quartet.checkpoint.tokenizer_files import eos_token_ids
from quartet.checkpoint.weight_files import stored_tensors
from quartet.sizing.model_bytes import weight_bytes
from quartet.wire.errors import ConfigError, ModelError

# The fields of the smaller published checkpoint.
PUBLISHED: dict[str, Any] = {
    "architectures": ["GptOssForCausalLM"],
    "attention_bias": True,
    "experts_per_token": 4,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2880,
    "initial_context_length": 4096,
    "intermediate_size": 2880,
    "max_position_embeddings": 131072,
    "num_attention_heads": 64,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 24,
    "num_key_value_heads": 8,
    "num_local_experts": 32,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {"beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0, "original_max_position_embeddings": 4096,
                     "rope_type": "yarn", "truncate": False},
    "rope_theta": 150000,
    "sliding_window": 128,
    "swiglu_limit": 7.0,
    "vocab_size": 201088,
}  # fmt: skip
OTHERS = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
MXFP4 = {"quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": OTHERS}}
ROPES = ("rope_scaling", "rope_theta")


def test_the_published_config() -> None:
    spec = parse_spec(PUBLISHED, 131072)
    assert [kind.window for kind in spec.attention] == [128, 0] * 12
    assert spec.has_sinks and spec.has_qkv_bias and spec.has_output_bias and not spec.is_tied
    assert spec.experts is not None and spec.experts.is_normalised
    assert spec.experts.gating == (1.702, 7.0, 1.0)
    rope = spec.attention[0].rope
    assert rope is not None and (rope.theta, rope.factor, rope.is_truncated) == (150000, 32, False)


def test_what_a_config_lacks_is_as_in_transformers() -> None:
    small = {key: value for key, value in PUBLISHED.items() if key not in (*ROPES, "swiglu_limit", "sliding_window")}
    assert parse_spec(small, 131072) == parse_spec(PUBLISHED, 131072)
    newer = {**small, "rope_parameters": {**PUBLISHED["rope_scaling"], "rope_theta": 150000.0, "factor": 16.0}}
    rope = parse_spec(newer, 4096).attention[0].rope
    assert rope is not None and rope.factor == 16


def test_experts_alone_are_in_mxfp4() -> None:
    spec = parse_spec({**PUBLISHED, **MXFP4}, 4096)
    stored, plain = stored_tensors(spec), stored_tensors(parse_spec(PUBLISHED, 4096))
    prefix = "model.layers.3.mlp.experts."
    assert stored[f"{prefix}gate_up_proj_blocks"].shape == (32, 5760, 90, 16)
    assert stored[f"{prefix}down_proj_scales"].shape == (32, 2880, 90)
    changed = {name for name in stored if name not in plain}
    assert len(changed) == 24 * 4 and {name.rpartition("_")[2] for name in changed} == {"blocks", "scales"}
    numbers = 24 * 32 * 3 * 2880 * 2880
    assert weight_bytes(parse_spec(PUBLISHED, 4096), 2) - weight_bytes(spec, 2, is_cuda=True) == numbers * 47 // 32
    if has_cpu_compiler():
        assert weight_bytes(parse_spec(PUBLISHED, 4096), 2) - weight_bytes(spec, 2) == numbers * 7 // 8


def test_stacks_that_are_named_stay_plain() -> None:
    named = {"quant_method": "mxfp4", "modules_to_not_convert": [*OTHERS, "model.layers.1*.mlp.experts"]}
    spec = parse_spec({**PUBLISHED, "quantization_config": named}, 4096)
    plain = [name for name in stored_tensors(spec) if name.endswith("experts.down_proj")]
    assert plain == [f"model.layers.{layer}.mlp.experts.down_proj" for layer in (1, *range(10, 20))]


@pytest.mark.parametrize(
    ("changes", "asked", "match"),
    [
        ({"quantization_config": {"quant_method": "fp8"}}, "auto", "experts .* (fp8) .* in MXFP4 or bfloat16"),
        ({}, "fp8", "experts .* in MXFP4 or bfloat16"),
        ({**MXFP4, "architectures": ["LlamaForCausalLM"], "num_local_experts": None}, "auto", "mxfp4 .* gpt-oss"),
        ({**MXFP4, "architectures": ["MixtralForCausalLM"]}, "auto", "swiglu_limit"),
        ({"swiglu_limit": -1.0}, "auto", "swiglu_limit"),
    ],
)
def test_what_is_not_served_is_refused(changes: dict[str, Any], asked: str, match: str) -> None:
    config = {**PUBLISHED, **changes}
    if "LlamaForCausalLM" in config["architectures"]:
        config = {key: value for key, value in config.items() if key != "swiglu_limit"}
    with pytest.raises(ModelError, match=match.replace("(", r"\(").replace(")", r"\)")):
        parse_spec(config, 128, asked)


def test_a_checkpoint_in_mxfp4_is_not_made_fp8() -> None:
    with pytest.raises(ConfigError, match="quantised already \\(mxfp4\\)"):
        parse_spec({**PUBLISHED, **MXFP4}, 128, "fp8")


def test_ranks_do_not_share_experts() -> None:
    with pytest.raises(ConfigError, match="a model with experts cannot be divided"):
        check_ranks(parse_spec({**PUBLISHED, **MXFP4}, 128), 2)


def test_a_call_ends_an_answer_though_no_file_says_so(tmp_path: Path) -> None:
    added = [{"id": 7, "content": "<|return|>"}, {"id": 9, "content": "<|call|>"}]
    write_json(tmp_path, "tokenizer.json", {"added_tokens": added})
    write_json(tmp_path, "tokenizer_config.json", {"eos_token": "<|return|>"})
    assert eos_token_ids(tmp_path) == {7}
    assert eos_token_ids(tmp_path, ("<|return|>", "<|call|>", "<|other|>")) == {7, 9}


def test_every_expert_is_in_the_stacks() -> None:
    shapes = expected_shapes(parse_spec(PUBLISHED, 4096))
    assert shapes["model.layers.0.mlp.experts.gate_up_proj"] == (32, 2880, 5760)
    assert shapes["model.layers.0.mlp.experts.gate_up_proj_bias"] == (32, 5760)
    assert shapes["model.layers.23.mlp.router.bias"] == (32,)
