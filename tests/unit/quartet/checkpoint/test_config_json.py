"""Every field of config.json is honoured, refused by name before anything starts, known to be irrelevant, or logged."""

from pathlib import Path
from typing import Any

import pytest
from model_folders import CONFIG, weights, write_folder, write_json

from quartet.checkpoint.resolve import resolve_model
from quartet.checkpoint.rotary import RopeSpec
from quartet.checkpoint.spec import parse_spec
from quartet.wire.config import ModelConfig, ResolvedModel
from quartet.wire.errors import ConfigError, ModelError

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
QWEN2 = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}


def resolve(folder: Path, **more: Any) -> ResolvedModel:
    return resolve_model(ModelConfig(model_path=str(folder), **more))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"hidden_act": "gelu"}, "hidden_act gelu"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"bias": True}, "bias"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rotary_pct": 0.25}, "rotary_pct"),
        ({"rope_interleaved": True}, "rope_interleaved"),
        ({"no_rope_layers": [1, 0]}, "no_rope_layers"),
        ({"quantization_config": {"bits": 4}}, "quantization_config.quant_method"),
        ({"quantization": {"bits": 4, "group_size": 64}}, "quantization in config.json is a format of MLX"),
        ({"compression_config": {"format": "int-quantized"}}, "compression_config.quant_method"),
        ({"num_local_experts": 8}, "num_local_experts 8"),
        ({"n_routed_experts": 64}, "n_routed_experts"),
        ({"logits_scaling": 8.0}, "logits_scaling"),
        ({"logit_scale": 0.5}, "logit_scale"),
        ({"embedding_multiplier": 12.0}, "embedding_multiplier"),
        ({"residual_multiplier": 0.22}, "residual_multiplier"),
        ({"attention_multiplier": 0.015}, "attention_multiplier"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ({"query_pre_attn_scalar": 256}, "query_pre_attn_scalar"),
        ({"clip_qkv": 8.0}, "clip_qkv"),
        ({"alibi": True}, "alibi"),
        ({"use_qk_norm": True}, "use_qk_norm"),
        ({"is_causal": False}, "is_causal"),
        ({"attention_chunk_size": 8192}, "attention_chunk_size"),
        ({"layer_types": ["full_attention", "linear_attention"]}, "layer_types.*linear_attention"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding_window"),
        ({"sliding_window": [64, 128]}, "sliding_window"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"num_hidden_layers": -1}, "num_hidden_layers"),
        ({"head_dim": "4"}, "head_dim"),
        ({"head_dim": 5}, "head_dim 5"),
        ({"num_attention_heads": 3, "num_key_value_heads": 3}, "hidden_size 16.*3"),
        ({"num_key_value_heads": 3}, "3 KV heads"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps"),
        ({"rope_theta": -1.0}, "rope_theta"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
    ],
)
def test_what_changes_the_output_and_is_not_served_is_refused_by_name(
    changes: dict[str, Any], match: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=match) as caught:
        resolve(write_folder(tmp_path / "model", **changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_act": "swish", "mlp_bias": False, "partial_rotary_factor": 1.0, "quantization_config": None},
        {"num_local_experts": 0, "logits_scaling": 1.0, "final_logit_softcapping": None, "is_causal": True},
        {"head_dim": None, "num_key_value_heads": 2, "rope_scaling": None, "rope_parameters": {}},
        {"layer_types": ["full_attention", "full_attention"], "sliding_window": 8},
        {"pretraining_tp": 2, "attention_dropout": 0.1, "use_cache": False, "torch_dtype": "float16", "dtype": "half"},
    ],
)
def test_what_changes_nothing_is_served_and_not_mentioned(
    changes: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert resolve(write_folder(tmp_path / "model", **changes)).context_length == 2048
    assert not caplog.records


def test_fields_that_are_not_known_are_logged_once_and_served(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    resolve(write_folder(tmp_path / "model", flavour="sweet", colour=3, rope_theta=500.0))
    (record,) = caplog.records
    assert "colour, flavour" in record.getMessage() and "rope_theta" not in record.getMessage()


def test_code_of_the_folder_is_not_run_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    resolve(write_folder(tmp_path / "model", auto_map={"AutoModelForCausalLM": "evil.Evil"}))
    assert "evil.Evil" in caplog.text and "LlamaForCausalLM" in caplog.text


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_scaling": {"type": "linear", "factor": 4.0}},
        {"rope_scaling": {"type": "linear", "rope_type": "linear", "factor": 4}},
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0}},
        {"rope_parameters": {"full_attention": {**LLAMA3, "rope_theta": 1e6}}},
        {"rope_parameters": {**LLAMA3, "rope_theta": 1e6, "partial_rotary_factor": 1.0}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "rope_scaling": {"rope_type": "default"}},
        {"rope_parameters": {"rope_theta": 1e6}},
        {"rope_scaling": {**LLAMA3, "attention_factor": 1.0}},
        {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}},
        {"rope_scaling": {"type": "su", "short_factor": [1, 2.0], "long_factor": [4, 8.0]}},
    ],
)
def test_every_spelling_of_a_served_rotary_kind_is_read(changes: dict[str, Any], tmp_path: Path) -> None:
    assert resolve(write_folder(tmp_path / "model", **changes)).vocab_size == CONFIG["vocab_size"]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"rope_scaling": {"type": "axial"}}, "rope scaling axial is not supported; default, linear"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0, "long_factor": [1.0]}}, "long_factor"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0, "truncate": 3}}, "truncate"),
        ({"rope_scaling": {"type": "longrope", "long_factor": [1.0], "short_factor": [1.0]}}, "short_factor.* 2 numb"),
        ({"rope_scaling": {"type": "su", "long_factor": [1, 2], "short_factor": [1, "2"]}}, "short_factor"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0, "rope_theta": 1.0}}, r"rope_theta 1\.0"),
        (
            {
                "rope_scaling": {"type": "longrope", "long_factor": [1, 2], "short_factor": [1, 2]},
                "original_max_position_embeddings": 1,
            },
            "original_max_position_embeddings",
        ),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 4.0, "alpha": 1000.0}}, "alpha"),
        ({"rope_scaling": {"factor": 4.0}}, "rope_scaling.*names no rope_type"),
        ({"rope_scaling": {"rope_type": "default", "factor": 4.0}}, "factor 4.0"),
        ({"rope_scaling": {"type": "linear", "rope_type": "default", "factor": 2.0}}, "rope_type.*type"),
        ({"rope_scaling": {"type": "linear"}}, "factor"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "factor"),
        ({"rope_scaling": {"type": "linear", "factor": "4"}}, "factor"),
        ({"rope_scaling": {"type": "linear", "factor": True}}, "factor"),
        ({"rope_scaling": {**LLAMA3, "high_freq_factor": 1.0}}, "high_freq_factor"),
        ({"rope_scaling": {**LLAMA3, "attention_factor": 0.5}}, "attention_factor"),
        ({"rope_scaling": {**LLAMA3, "mrope_section": [2, 1, 1]}}, "mrope_section"),
        ({"rope_scaling": "linear"}, "rope_scaling"),
        ({"rope_parameters": [1]}, "rope_parameters"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        (
            {"rope_scaling": {"type": "linear", "factor": 4.0}, "rope_parameters": {"rope_type": "default"}},
            "rope_scaling and rope_parameters",
        ),
        (
            {"rope_parameters": {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}},
            "sliding_attention",
        ),
    ],
)
def test_every_other_rotary_setting_is_refused_by_name(changes: dict[str, Any], match: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=match):
        resolve(write_folder(tmp_path / "model", **changes))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({**QWEN2, "sliding_window": 64}, 2048),
        ({**QWEN2, "sliding_window": 64, "use_sliding_window": True}, 2048),
        ({**QWEN2, "sliding_window": 64, "use_sliding_window": True, "max_window_layers": 1}, 2048),
        ({**QWEN2, "sliding_window": 64, "use_sliding_window": True, "layer_types": ["full_attention"] * 2}, 2048),
        ({**QWEN2, "sliding_window": 64, "use_sliding_window": True, "layer_types": ["sliding_attention"] * 2}, 2048),
        ({"architectures": ["MistralForCausalLM"], "sliding_window": None}, 2048),
        ({"architectures": ["MistralForCausalLM"], "sliding_window": 64}, 2048),
        ({"architectures": ["MistralForCausalLM"], "max_position_embeddings": 8192}, 8192),
        ({"sliding_window": 64}, 64),
        ({"sliding_window": 0}, 2048),
    ],
)
def test_a_window_limits_the_context_only_where_no_layer_would_have_it(
    changes: dict[str, Any], expected: int, tmp_path: Path
) -> None:
    tensors = weights(qkv_bias="Qwen2ForCausalLM" in changes.get("architectures", []))
    folder = write_folder(tmp_path / "model", tensors, **changes)
    assert resolve(folder).context_length == expected
    with pytest.raises(ConfigError, match="limit is"):
        resolve(folder, context_length=expected + 1)


def test_qwen2_has_no_output_bias_whatever_attention_bias_says(tmp_path: Path) -> None:
    resolve(write_folder(tmp_path / "model", weights(qkv_bias=True), **QWEN2, attention_bias=True))


def test_defaults_are_those_of_the_architecture(tmp_path: Path) -> None:
    """Qwen3's head has 128 entries unless config.json says otherwise, whatever hidden_size is."""
    folder = write_folder(tmp_path / "model", weights(norms=True), architectures=["Qwen3ForCausalLM"], head_dim=4)
    resolve(folder)
    without = {key: value for key, value in CONFIG.items() if key != "head_dim"}
    write_json(folder, "config.json", {**without, "architectures": ["Qwen3ForCausalLM"]})
    with pytest.raises(ModelError, match=r"has shape .*asks for \[512, 16\]"):
        resolve(folder)


def test_sampling_defaults_of_an_old_config_are_honoured(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", temperature=0.7)
    assert resolve(folder).default_sampling == {"temperature": 0.7}
    write_json(folder, "generation_config.json", {"top_p": 0.9})
    assert resolve(folder).default_sampling == {"top_p": 0.9}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("temperature", -1.0),
        ("temperature", 2.5),
        ("temperature", "0.6"),
        ("temperature", float("nan")),
        ("top_p", 0),
        ("top_p", 1.5),
        ("top_k", -5),
        ("top_k", True),
        ("min_p", 2),
        ("repetition_penalty", 0),
    ],
)
def test_a_sampling_default_that_no_request_may_have_is_refused(key: str, value: Any, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model")
    write_json(folder, "generation_config.json", {key: value})
    with pytest.raises(ModelError, match=rf"generation_config\.json sets {key} to"):
        resolve(folder)


def test_what_generation_config_asks_for_and_is_not_applied_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_folder(tmp_path / "model")
    settings = {"no_repeat_ngram_size": 3, "suppress_tokens": [5], "num_beams": 1, "do_sample": True, "bos_token_id": 1}
    write_json(folder, "generation_config.json", settings)
    resolve(folder)
    assert "not applied to requests: suppress_tokens, no_repeat_ngram_size" in caplog.text


def test_dummy_weights_need_no_files(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    assert resolve(folder, load_format="dummy").vocab_size == CONFIG["vocab_size"]
    with pytest.raises(ModelError, match="hidden_act"):
        resolve(write_folder(tmp_path / "other", hidden_act="relu"), load_format="dummy")


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [
        ({"type": "yarn", "factor": 4.0}, 8192),
        ({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}, 4096),
        ({"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 512}, 2048),
        ({"type": "dynamic", "factor": 4.0}, 2048),
        ({"type": "linear", "factor": 4.0}, 2048),
    ],
)
def test_yarn_extends_the_context(scaling: dict[str, Any], expected: int, tmp_path: Path) -> None:
    """Published checkpoints leave max_position_embeddings at the length before the scaling."""
    assert resolve(write_folder(tmp_path / "model", rope_scaling=scaling)).context_length == expected


def test_longrope_takes_one_list_of_factors_for_a_whole_launch() -> None:
    scaling = {"type": "longrope", "short_factor": [1, 2.0], "long_factor": [4, 8.0]}
    config = {**CONFIG, "rope_scaling": scaling, "original_max_position_embeddings": 512}
    ropes = [parse_spec(config, length).attention[0].rope for length in (512, 513)]
    assert [rope and rope.divisors for rope in ropes] == [(1, 2), (4, 8)]


def test_a_family_that_is_not_in_the_table_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"Qwen3VLForCausalLM is not supported; .*; the nearest is Qwen3ForCausalLM$"):
        resolve(write_folder(tmp_path / "vision", architectures=["Qwen3VLForCausalLM"]))
    with pytest.raises(ModelError, match=r"the nearest is GraniteForCausalLM$"):
        resolve(write_folder(tmp_path / "hybrid", architectures=["GraniteMoeHybridForCausalLM"]))


@pytest.mark.parametrize("marks", [[1], [1, 2], "1", [1, "0"]])
def test_marks_of_layers_without_rotary_are_checked(marks: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no_rope_layers"):
        resolve(write_folder(tmp_path / "model", architectures=["SmolLM3ForCausalLM"], no_rope_layers=marks))


def test_defaults_of_smollm3_are_those_of_transformers() -> None:
    config = {key: value for key, value in CONFIG.items() if key not in ("tie_word_embeddings", "rope_theta")}
    spec = parse_spec({**config, "architectures": ["SmolLM3ForCausalLM"], "num_hidden_layers": 9}, 64)
    assert spec.is_tied and [kind.rope for kind in spec.attention[:4]] == [*[RopeSpec(2000000.0)] * 3, None]


def test_a_share_of_a_head_that_cannot_be_rotated_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"partial_rotary_factor 0\.3.* rotates 1 of 4"):
        resolve(write_folder(tmp_path / "model", architectures=["Phi3ForCausalLM"], partial_rotary_factor=0.3))
