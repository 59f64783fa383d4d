"""What the metadata of a GGUF file says is honoured or refused by name before the conversion starts."""

import json
import struct
from pathlib import Path
from typing import Any

import gguf_models
import numpy as np
import pytest
from gguf_models import HEADS, HIDDEN, KV_HEADS, biases
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from quartet.checkpoint.convert import convert
from quartet.checkpoint.gguf_fields import recommended_sampling
from quartet.checkpoint.resolve import resolve_model
from quartet.wire.config import ModelConfig
from quartet.wire.errors import ModelError

HEAD = HIDDEN // HEADS


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUARTET_CACHE_DIR", str(tmp_path / "cache"))


def converted(folder: Path, **options: Any) -> dict[str, Any]:
    """Return config.json of a tiny model that is written with `options`, and check that start-up accepts it."""
    path = folder / "tiny.gguf"
    gguf_models.write_gguf(path, **options)
    model = resolve_model(ModelConfig(model_path=str(path)))
    config: dict[str, Any] = json.loads((Path(model.folder) / "config.json").read_text())
    return config


def refused(folder: Path, match: str, capfd: pytest.CaptureFixture[str], **options: Any) -> None:
    """Check that start-up refuses a tiny model that is written with `options`, before it converts anything."""
    path = folder / "tiny.gguf"
    gguf_models.write_gguf(path, **options)
    with pytest.raises(ModelError, match=match) as caught:
        resolve_model(ModelConfig(model_path=str(path)))
    assert "\n" not in str(caught.value)
    assert "converting" not in capfd.readouterr().err


def test_qwen2_has_biases_on_q_k_and_v_alone(tmp_path: Path) -> None:
    config = converted(tmp_path, arch="qwen2", extra=biases("q k v"))
    assert not config["attention_bias"]


def test_a_llama_may_have_biases_on_q_k_and_v_alone(tmp_path: Path) -> None:
    config = converted(tmp_path, extra=biases("q k v"))
    assert (config["attention_bias"], config["qkv_bias"]) == (False, True)
    found = load_file(convert(tmp_path / "tiny.gguf") / "model.safetensors")["model.layers.1.self_attn.k_proj.bias"]
    np.testing.assert_array_equal(gguf_models.permute(found, KV_HEADS), np.arange(KV_HEADS * HEAD))


def test_a_llama_may_have_biases_on_all_four(tmp_path: Path) -> None:
    config = converted(tmp_path, extra=biases("q k v output"))
    assert (config["attention_bias"], config["qkv_bias"]) == (True, True)


def test_a_llama_may_have_a_bias_on_the_output_alone(tmp_path: Path) -> None:
    config = converted(tmp_path, extra=biases("output"))
    assert (config["attention_bias"], config["qkv_bias"]) == (True, False)


@pytest.mark.parametrize(("arch", "parts"), [("llama", "q"), ("llama", "k output"), ("qwen2", "q k v output")])
def test_other_sets_of_biases_are_refused(
    arch: str, parts: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    refused(tmp_path, r"bias is (missing|unexpected)", capfd, arch=arch, extra=biases(parts))


def test_a_bias_of_some_layers_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    refused(tmp_path, r"layers\.1\..*bias is missing", capfd, extra=biases("q k v", layers=1))


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({}, None),
        ({"rope.scale_linear": 4.0}, 4.0),
        ({"rope.scaling.factor": 4.0}, 4.0),
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 2.0, "rope.scale_linear": 4.0}, 2.0),
        ({"rope.scaling.type": "linear", "rope.scale_linear": 4.0}, 4.0),
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 1.0}, None),
        ({"rope.scaling.type": "linear"}, None),
        ({"rope.scale_linear": 0.0}, None),
        ({"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, None),
        ({"rope.dimension_count": HEAD, "rope.scaling.original_context_length": 64}, None),
    ],
)
def test_linear_rotary_scaling_is_read_as_llama_cpp_reads_it(
    metadata: dict[str, Any], expected: float | None, tmp_path: Path
) -> None:
    scaling = converted(tmp_path, metadata={f"llama.{key}": value for key, value in metadata.items()}).get(
        "rope_scaling"
    )
    assert scaling == (None if expected is None else {"rope_type": "linear", "factor": expected})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rope.dimension_count", HEAD // 2),
        ("rope.scaling.type", "yarn"),
        ("rope.scaling.type", "longrope"),
        ("rope.scaling.attn_factor", 0.5),
        ("rope.scaling.alpha", 1000.0),
        ("rope.dimension_sections", [4, 2, 2, 0]),
        ("rope.freq_base_swa", 1000000.0),
        ("attention.sliding_window_pattern", 2),
        ("rope.freq_base", 0.0),
        ("attention.value_length", HEAD * 2),
        ("attention.head_count_kv", [2, 1]),
        ("attention.head_count", [4, 2]),
        ("feed_forward_length", [96, 48]),
        ("attention.causal", False),
        ("attention.clamp_kqv", 8.0),
        ("attention.max_alibi_bias", 8.0),
        ("attention.scale", 0.5),
        ("attention.output_scale", 0.5),
        ("attention.temperature_length", 8192),
        ("attention.shared_kv_layers", 1),
        ("attn_logit_softcapping", 50.0),
        ("final_logit_softcapping", 30.0),
        ("logit_scale", 8.0),
        ("residual_scale", 0.2),
        ("embedding_scale", 12.0),
        ("expert_count", 8),
        ("use_parallel_residual", True),
        ("pooling_type", 3),
        ("nextn_predict_layers", 1),
    ],
)
def test_a_setting_that_is_not_served_is_refused_by_name(
    key: str, value: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    name = "rope.scaling.type|rope scaling" if key == "rope.scaling.type" else key.replace(".", r"\.")
    refused(tmp_path, name, capfd, metadata={f"llama.{key}": value})


@pytest.mark.parametrize(
    "metadata",
    [
        {"attention.head_count_kv": [KV_HEADS, KV_HEADS]},
        {"attention.head_count": [HEADS, HEADS], "feed_forward_length": [gguf_models.INNER] * 2},
        {"attention.key_length": HEAD, "attention.value_length": HEAD},
        {"attention.causal": True, "attention.clamp_kqv": 0.0, "logit_scale": 1.0, "expert_count": 0},
        {"attention.sliding_window": 0, "vocab_size": len(gguf_models.TOKENS)},
    ],
)
def test_settings_without_effect_are_accepted(metadata: dict[str, Any], tmp_path: Path) -> None:
    config = converted(tmp_path, metadata={f"llama.{key}": value for key, value in metadata.items()})
    assert (config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]) == (4, 2, HEAD)


def test_a_sliding_window_limits_the_context(tmp_path: Path) -> None:
    gguf_models.write_gguf(tmp_path / "tiny.gguf", metadata={"llama.attention.sliding_window": 32})
    assert resolve_model(ModelConfig(model_path=str(tmp_path / "tiny.gguf"))).context_length == 32


def test_a_key_that_is_not_known_is_reported_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    converted(tmp_path, metadata={"llama.attention.flavour": "sweet"})
    convert(tmp_path / "tiny.gguf")
    assert capfd.readouterr().err.count("llama.attention.flavour") == 1


def test_every_end_of_turn_ends_the_output(tmp_path: Path) -> None:
    tokens = ["<|end|>", "<|im_end|>", "<|eot|>", "<|eom|>", *"abcdefgh", "Ġ", "ab"]
    tokenizer = {"tokens": tokens, "types": [3] * 4 + [1] * 10, "merges": ["a b"], "eos": 0}
    ends = {
        "tokenizer.ggml.eot_token_id": 2,
        "tokenizer.ggml.eom_token_id": 3,
        "tokenizer.ggml.bos_token_id": 2**32 - 1,
    }
    path = tmp_path / "tiny.gguf"
    extra = {"token_embd.weight": np.zeros((len(tokens), HIDDEN), np.float32)}
    gguf_models.write_gguf(path, tokenizer=tokenizer, metadata=ends, extra=extra)
    model = resolve_model(ModelConfig(model_path=str(path)))
    assert model.eos_token_ids == (0, 1, 2, 3), "1 is <|im_end|>, which llama.cpp knows by its text"
    assert model.bos_token_id is None, "the largest number stands for none"


def test_an_end_outside_the_vocabulary_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    refused(tmp_path, r"tokenizer\.ggml\.eot_token_id", capfd, metadata={"tokenizer.ggml.eot_token_id": 4000})


def test_recommended_sampling_becomes_the_default(tmp_path: Path) -> None:
    settings = {"temp": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.1, "penalty_repeat": 1.1}
    metadata = {f"general.sampling.{key}": value for key, value in settings.items()}
    gguf_models.write_gguf(tmp_path / "tiny.gguf", metadata=metadata)
    assert resolve_model(ModelConfig(model_path=str(tmp_path / "tiny.gguf"))).default_sampling == {
        "temperature": 0.6,
        "top_k": 20,
        "top_p": 0.95,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
    }


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"general.basename": "SmolLM2"}, {"temperature": 0.2, "top_p": 0.5}),
        ({"general.basename": "smollm2", "general.sampling.top_k": 5}, {"top_k": 5}),
        ({"general.basename": "smollm2", "tokenizer.chat_template": None}, {}),
        ({"general.basename": "other"}, {}),
    ],
)
def test_a_file_without_recommended_sampling_gets_what_suits_its_model(
    metadata: dict[str, Any], expected: dict[str, float]
) -> None:
    given = {"tokenizer.chat_template": "{{ x }}", **metadata}
    assert recommended_sampling({key: value for key, value in given.items() if value is not None}) == expected


def test_a_part_of_a_split_file_names_the_command_that_joins(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    metadata = {"split.no": 1, "split.count": 3, "split.tensors.count": 60}
    refused(tmp_path, r"part 2 of 3.*llama-gguf-split --merge", capfd, metadata=metadata)


def test_a_single_part_is_a_whole_file(tmp_path: Path) -> None:
    converted(tmp_path, metadata={"split.no": 0, "split.count": 1})


def test_a_big_endian_file_is_called_that(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    refused(tmp_path, r"big-endian.*gguf-convert-endian", capfd, is_big_endian=True)


@pytest.mark.parametrize(
    ("head", "match"),
    [
        (b"GGUF" + struct.pack("<I", 1), "version 1.*convert the model again"),
        (b"GGUF" + struct.pack("<I", 9), "version 9.*newer"),
        (b"tjgg" + struct.pack("<I", 3), "older format"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
    ],
)
def test_other_kinds_of_files_are_called_what_they_are(head: bytes, match: str, tmp_path: Path) -> None:
    path = tmp_path / "other.gguf"
    path.write_bytes(head + bytes(40))
    with pytest.raises(ModelError, match=match):
        resolve_model(ModelConfig(model_path=str(path)))


def test_an_adapter_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    refused(tmp_path, "adapter", capfd, metadata={"general.type": "adapter"})


def test_a_quantisation_that_is_not_known_is_refused_before_anything_is_converted(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    extra = {name: values.astype(np.float64) for name, values in biases("q k v").items()}
    refused(tmp_path, "F64", capfd, extra=extra)


def test_an_end_that_prompts_shall_have_is_added(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    gguf_models.write_gguf(path, tokenizer={"bos": 1, "eos": 2}, metadata={"tokenizer.ggml.add_eos_token": True})
    assert Tokenizer.from_file(str(convert(path) / "tokenizer.json")).encode("d").ids == [4, 2]
    gguf_models.write_gguf(
        path,
        tokenizer={"bos": 1, "eos": 2},
        metadata={"tokenizer.ggml.add_eos_token": True, "tokenizer.ggml.add_bos_token": True},
    )
    assert Tokenizer.from_file(str(convert(path) / "tokenizer.json")).encode("d").ids == [1, 4, 2]


def test_sampling_that_no_request_may_have_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    refused(tmp_path, "temperature", capfd, metadata={"general.sampling.temp": 7.5})


def test_two_scalings_of_the_rotary_frequencies_are_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    factors = {"rope_freqs.weight": np.ones(HEAD // 2, np.float32)}
    refused(tmp_path, "twice", capfd, extra=factors, metadata={"llama.rope.scaling.factor": 2.0})
    refused(tmp_path, "factors for heads", capfd, extra={"rope_freqs.weight": np.ones(HEAD, np.float32)})
