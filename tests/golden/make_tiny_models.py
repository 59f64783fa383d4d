"""Make the tiny models of models/: a folder for each architecture, random weights, what transformers makes of them.

    OMP_NUM_THREADS=1 .venv-oracle/bin/python tests/golden/make_tiny_models.py

Each folder is what a checkpoint of its kind looks like, config.json included: transformers 5 writes `rope_parameters`,
but the published checkpoints of most kinds still have `rope_theta` and `rope_scaling`, so some folders are put into
that form. Weights are drawn here, name by name, so that they depend on no library's initialisation; norms and biases
are random too, lest a forgotten one go unnoticed.
"""

import json
import shutil
import sys
import zlib
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from greedy import continue_greedily
from mxfp4_packing import pack_experts, round_experts
from tiny_tokenizer import write_tokenizer
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    Gemma4TextConfig,
    GptOssConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    OlmoeConfig,
    Phi3Config,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3_5MoeTextConfig,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    SeedOssConfig,
    SmolLM3Config,
)

_FOLDER = Path(__file__).parent / "models"
_PROMPT_LENGTHS = (1, 2, 17, 33, 96, 200)
_NEW_TOKENS = 24

_SHAPE = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 144,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "dtype": "float32",
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@dataclass(frozen=True, slots=True)
class Tiny:
    """One folder. `is_old_form`: config.json as transformers 4 wrote it. `shard`: largest size of one weights file.
    `is_stacked`: all experts of a layer in one tensor. `is_mxfp4`: those tensors have 4 bits a number."""

    name: str
    config: object
    is_old_form: bool = False
    shard: str = "100MB"
    has_tokenizer: bool = False
    is_stacked: bool = False
    is_mxfp4: bool = False


def _models() -> list[Tiny]:
    plain_rope = {"rope_type": "default", "rope_theta": 10000.0}
    wide_rope = {"rope_type": "default", "rope_theta": 1000000.0}
    qwen3 = Qwen3Config(**_SHAPE, head_dim=32, tie_word_embeddings=False, rope_parameters=wide_rope)
    qwen2 = Qwen2Config(**_SHAPE, tie_word_embeddings=False, rope_parameters=wide_rope, rms_norm_eps=1e-6)
    llama = LlamaConfig(**_SHAPE, tie_word_embeddings=False, rope_parameters=_LLAMA3_ROPE, rms_norm_eps=1e-5)
    tied = LlamaConfig(**{**_SHAPE, "num_hidden_layers": 3}, tie_word_embeddings=True, rope_parameters=plain_rope)
    mistral = MistralConfig(**_SHAPE, tie_word_embeddings=False, sliding_window=None, rope_parameters=plain_rope)
    return [
        Tiny("qwen3", qwen3, has_tokenizer=True),
        Tiny("qwen2", qwen2, is_old_form=True),
        Tiny("llama", llama, is_old_form=True),
        Tiny("llama_tied", tied),
        Tiny("mistral", mistral, is_old_form=True, shard="400KB"),
    ]


def _yarn(length: int, **more: object) -> dict[str, object]:
    rope = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 8.0, "original_max_position_embeddings": length}
    return {**rope, **more}


def _longrope(pairs: int) -> dict[str, object]:
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 0.75}
    short, long = ([base + step * i for i in range(pairs)] for base, step in ((1.0, 0.05), (1.5, 0.7)))
    return {**rope, "short_factor": short, "long_factor": long}


def _dense_families() -> list[Tiny]:
    """Phi-3 with all and with three quarters of a head rotated, Granite, OLMo 2, SmolLM3 and Seed-OSS."""
    plain_rope = {"rope_type": "default", "rope_theta": 10000.0}
    shape = {**_SHAPE, "pad_token_id": 0, "rope_parameters": plain_rope}
    untied, tied = {**shape, "tie_word_embeddings": False}, {**shape, "tie_word_embeddings": True}
    scales = {"embedding_multiplier": 4.0, "attention_multiplier": 0.15, "residual_multiplier": 0.6}
    granite = GraniteConfig(**untied, **scales, logits_scaling=8.0)
    # 12 of 16 dimensions are rotated.
    longrope = {**tied, "rope_parameters": _longrope(6), "original_max_position_embeddings": 128}
    unrotated = {**tied, "num_hidden_layers": 4, "no_rope_layers": [1, 0, 1, 0], "rope_parameters": _yarn(64)}
    dynamic = {**untied, "rope_parameters": {**plain_rope, "rope_type": "dynamic", "factor": 2.0}}
    heads = {"head_dim": 32, "num_key_value_heads": 1, "attention_bias": True, "attention_out_bias": False}
    yarn = {**untied, **heads, "rope_parameters": _yarn(64, beta_fast=16.0, truncate=False)}
    return [
        Tiny("phi3", Phi3Config(**untied), is_old_form=True),
        Tiny("phi3_longrope", Phi3Config(**longrope), is_old_form=True),
        Tiny("granite", granite, is_old_form=True),
        Tiny("olmo2", Olmo2Config(**dynamic), is_old_form=True),
        Tiny("smollm3", SmolLM3Config(**unrotated)),
        Tiny("seed_oss", SeedOssConfig(**yarn)),
    ]


def _expert_families() -> list[Tiny]:
    """Qwen3-MoE and Qwen2-MoE, the latter with a shared expert, each with a dense layer; Mixtral, OLMoE."""
    plain_rope = {"rope_type": "default", "rope_theta": 10000.0}
    shape = {**_SHAPE, "pad_token_id": 0, "rope_parameters": plain_rope, "tie_word_embeddings": False}
    small = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 48}
    shared = {"shared_expert_intermediate_size": 80, "decoder_sparse_step": 2}
    few = {**shape, "intermediate_size": 48, "num_local_experts": 5, "num_experts_per_tok": 2}
    many = {**shape, "intermediate_size": 32, "num_experts": 12, "num_experts_per_tok": 4, "norm_topk_prob": False}
    qwen3 = Qwen3MoeConfig(**{**shape, "num_hidden_layers": 3}, **small, mlp_only_layers=[1], norm_topk_prob=True)
    return [
        Tiny("qwen3_moe", qwen3, is_old_form=True),
        Tiny("mixtral", MixtralConfig(**few), is_old_form=True),
        Tiny("olmoe", OlmoeConfig(**many), is_old_form=True),
        Tiny("qwen2_moe", Qwen2MoeConfig(**{**shape, "num_hidden_layers": 4}, **small, **shared)),
    ]


def _hybrids() -> list[Tiny]:
    """Qwen3.5: linear attention in three layers of four, with more value heads than key heads."""
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25}
    heads = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16}
    shape = {**_SHAPE, "num_hidden_layers": 4, "head_dim": 32, "linear_value_head_dim": 32, "rope_parameters": rope}
    dense = Qwen3_5TextConfig(**shape, **heads, tie_word_embeddings=False)
    small = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 48}
    shared = {**small, "shared_expert_intermediate_size": 80}
    few = {**{key: value for key, value in shape.items() if key != "intermediate_size"}, **heads}
    experts = Qwen3_5MoeTextConfig(**few, **shared, tie_word_embeddings=False)
    return [Tiny("qwen3_5", dense), Tiny("qwen3_5_moe", experts, is_stacked=True)]


def _windows() -> list[Tiny]:
    """Layers that see a window, which every longer prompt crosses: Gemma 2 to 4, Mistral, Qwen2 and Phi-3."""
    plain_rope = {"rope_type": "default", "rope_theta": 10000.0}
    untied = {**_SHAPE, "tie_word_embeddings": False, "rope_parameters": plain_rope}
    gemma = {**untied, "head_dim": 32, "num_key_value_heads": 1, "query_pre_attn_scalar": 20, "sliding_window": 24}
    gemma |= {"num_hidden_layers": 3, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
    ropes = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        "full_attention": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
    }
    # Layers without a window have heads of their own there, and keys that are the values.
    wider = {"global_head_dim": 48, "num_global_key_value_heads": 1, "attention_k_eq_v": True}
    gemma4 = {**untied, "head_dim": 32, "sliding_window": 24, "num_hidden_layers": 4, "final_logit_softcapping": 6.0}
    gemma4 |= {"layer_types": ["sliding_attention", "full_attention"] * 2, "hidden_size_per_layer_input": 0, **wider}
    gemma4["rope_parameters"] = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 10000.0},
    }
    capped = {"final_logit_softcapping": 6.0, "attn_logit_softcapping": 3.0}
    gemma2 = Gemma2Config(**gemma, **capped)
    qwen2 = {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": 20}
    return [
        Tiny("gemma3", Gemma3TextConfig(**{**gemma, "rope_parameters": ropes})),
        Tiny("gemma4", Gemma4TextConfig(**gemma4)),
        Tiny("gemma2", gemma2, is_old_form=True),
        Tiny("mistral_window", MistralConfig(**untied, sliding_window=24), is_old_form=True),
        Tiny("qwen2_window", Qwen2Config(**untied, **qwen2), is_old_form=True),
        Tiny("phi3_window", Phi3Config(**untied, pad_token_id=0, sliding_window=30), is_old_form=True),
    ]


def _gpt_oss() -> list[Tiny]:
    """gpt-oss with plain experts, and in MXFP4 with the config.json of its time; most gates and ups reach the limit."""
    shape = {**_SHAPE, "head_dim": 32, "sliding_window": 24, "num_local_experts": 6, "num_experts_per_tok": 3}
    shape |= {"rope_parameters": _yarn(64, truncate=False), "swiglu_limit": 1.25}
    plain = GptOssConfig(**{**shape, "intermediate_size": 48}, swiglu_alpha=1.3)
    packed = GptOssConfig(**{**shape, "intermediate_size": 64})
    return [Tiny("gpt_oss", plain), Tiny("gpt_oss_mxfp4", packed, is_old_form=True, is_mxfp4=True)]


def main() -> None:
    """Make the folders whose names are given, or all, afresh."""
    torch.set_num_threads(1)
    for tiny in [*_models(), *_dense_families(), *_windows(), *_expert_families(), *_hybrids(), *_gpt_oss()]:
        if sys.argv[1:] and tiny.name not in sys.argv[1:]:
            continue
        folder = _FOLDER / tiny.name
        shutil.rmtree(folder, ignore_errors=True)
        model = AutoModelForCausalLM.from_config(tiny.config, dtype=torch.float32)
        _draw_weights(model, tiny.name)
        stacks = round_experts(model) if tiny.is_mxfp4 else {}
        model.save_pretrained(folder, max_shard_size=tiny.shard, save_original_format=not tiny.is_stacked)
        if tiny.is_old_form:
            _put_into_old_form(folder / "config.json")
        if stacks:
            pack_experts(folder, stacks)
        if tiny.has_tokenizer:
            write_tokenizer(folder, tiny.config.vocab_size)
        for path in folder.iterdir():
            path.chmod(0o644)
        _write_oracle(folder, model.eval())


@torch.no_grad()
def _draw_weights(model, name: str) -> None:
    """Matrices keep the size of what flows through them, embeddings are of unit size, norms lie around one, or around
    zero where one is added to them; the states of linear attention fade over tens of tokens."""
    for parameter_name, parameter in sorted(model.named_parameters()):
        generator = torch.Generator().manual_seed(zlib.crc32(f"{name}/{parameter_name}".encode()))
        noise = torch.randn(parameter.shape, generator=generator)
        if "norm" in parameter_name:
            parameter.copy_(parameter.mean().round() + 0.3 * noise)
        elif parameter_name.endswith("A_log"):
            parameter.copy_(noise - 3.0)
        elif parameter_name.endswith("bias"):
            parameter.copy_(0.5 * noise)
        elif "embed_tokens" in parameter_name:
            # Where embeddings are scaled, they would drown what layers add to them.
            scale = getattr(model.get_input_embeddings(), "scalar_embed_scale", 1.0)
            parameter.copy_(noise / scale if not model.config.tie_word_embeddings else 0.5 * noise / scale)
        else:
            parameter.copy_(noise * (1.5 / parameter.shape[-1] ** 0.5))
    for name, buffer in model.named_buffers():
        if name.endswith("layer_scalar"):
            buffer.fill_(0.5 + 0.25 * int(name.split(".")[2]))


def _put_into_old_form(path: Path) -> None:
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    if "partial_rotary_factor" in rope:
        config["partial_rotary_factor"] = rope.pop("partial_rotary_factor")
    config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    config["torch_dtype"] = config.pop("dtype")
    # Which layers have a window follows from the architecture there.
    config.pop("layer_types", None)
    config["transformers_version"] = "4.43.0"
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _write_oracle(folder: Path, drawn) -> None:
    """Read the folder back, as a user of it would, and record greedy continuations of random prompts.

    Raises AssertionError where the folder does not say the same as the model `drawn` that was saved in it.
    """
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(zlib.crc32(folder.name.encode()))
    lines = []
    for length in _PROMPT_LENGTHS:
        prompt = torch.randint(3, model.config.vocab_size, (length,), generator=generator).tolist()
        answer = continue_greedily(model, prompt, _NEW_TOKENS)
        expected = torch.tensor(continue_greedily(drawn, prompt, 1).first_logits)
        torch.testing.assert_close(torch.tensor(answer.first_logits), expected, rtol=1e-4, atol=1e-4)
        print(f"{folder.name} {length}: {len(set(answer.ids))} different, smallest margin {min(answer.margins)}")
        record = {"prompt_ids": prompt, "output_ids": answer.ids, "margins": answer.margins}
        lines.append(json.dumps({**record, "first_logits": answer.first_logits}, separators=(",", ":")))
    head = {"model": folder.name, "dtype": "float32", "versions": {n: version(n) for n in ("transformers", "torch")}}
    opening = json.dumps(head, separators=(",", ":"))[:-1]
    (folder / "oracle.json").write_text(opening + ',"prompts":[\n' + ",\n".join(lines) + "\n]}\n")


if __name__ == "__main__":
    main()
