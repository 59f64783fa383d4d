"""Reference of the model tests: a dense forward pass over the whole sequence, written from the papers, in float64."""

import math
from typing import Any

import torch
from torch import Tensor


def dense_logits(config: dict[str, Any], weights: dict[str, Tensor], ids: list[int]) -> Tensor:
    """Return logits [len(ids), vocab] in float64; no cache, no pages, no batch. With `kv_cache` fp8_e4m3 in `config`
    keys and values are rounded to that type."""
    w = {name: tensor.double() for name, tensor in weights.items()}
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    dim = config.get("head_dim") or config["hidden_size"] // heads
    x = w["model.embed_tokens.weight"][torch.tensor(ids)]
    angles = torch.outer(torch.arange(len(ids)).double(), _frequencies(config, dim))
    for i in range(config["num_hidden_layers"]):
        layer = {name.split(f"layers.{i}.")[1]: t for name, t in w.items() if f"layers.{i}." in name}
        x = x + _attend(config, layer, _norm(x, layer["input_layernorm.weight"], config), angles, heads, kv_heads, dim)
        h = _norm(x, layer["post_attention_layernorm.weight"], config)
        gate = h @ layer["mlp.gate_proj.weight"].T
        x = x + (gate * torch.sigmoid(gate) * (h @ layer["mlp.up_proj.weight"].T)) @ layer["mlp.down_proj.weight"].T
    head = w.get("lm_head.weight", w["model.embed_tokens.weight"])
    return _norm(x, w["model.norm.weight"], config) @ head.T


def dense_greedy(config: dict[str, Any], weights: dict[str, Tensor], ids: list[int], count: int) -> list[int]:
    """Return the next `count` ids; fails the test if two logits are too close to distinguish in fp32."""
    out: list[int] = []
    for _ in range(count):
        logits = dense_logits(config, weights, ids + out)[-1]
        best = logits.topk(2).values
        assert best[0] - best[1] > 1e-4, "the tiny model is at a near-tie: take another seed"
        out.append(int(logits.argmax()))
    return out


def _norm(x: Tensor, weight: Tensor, config: dict[str, Any]) -> Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + config["rms_norm_eps"]) * weight


def _frequencies(config: dict[str, Any], dim: int) -> Tensor:
    theta = (config.get("rope_parameters") or config)["rope_theta"]
    scaling = config.get("rope_scaling")
    out = []
    for i in range(0, dim, 2):
        f = theta ** (-i / dim)
        if scaling and scaling.get("type") == "linear":
            f = f / scaling["factor"]
        elif scaling:
            old, low, high = (
                scaling[k] for k in ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor")
            )
            rotations = old * f / (2 * math.pi)
            blend = min(1.0, max(0.0, (rotations - low) / (high - low)))
            f = f * (blend + (1 - blend) / scaling["factor"])
        out.append(f)
    return torch.tensor(out, dtype=torch.float64)


def _rotate(x: Tensor, angles: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    c, s = angles.cos()[:, None], angles.sin()[:, None]
    return torch.cat((x[..., :half] * c - x[..., half:] * s, x[..., half:] * c + x[..., :half] * s), -1)


def _attend(
    config: dict[str, Any], w: dict[str, Tensor], x: Tensor, angles: Tensor, heads: int, kv_heads: int, dim: int
) -> Tensor:
    def project(name: str, count: int) -> Tensor:
        y = x @ w[f"self_attn.{name}_proj.weight"].T + w.get(f"self_attn.{name}_proj.bias", torch.zeros(()))
        y = y.view(len(x), count, dim)
        norm = w.get(f"self_attn.{name}_norm.weight")
        return y if norm is None else _norm(y, norm, config)

    q, k, v = _rotate(project("q", heads), angles), _rotate(project("k", kv_heads), angles), project("v", kv_heads)
    if config.get("kv_cache") == "fp8_e4m3":
        k, v = (t.float().to(torch.float8_e4m3fn).double() for t in (k, v))
    k, v = (t.repeat_interleave(heads // kv_heads, dim=1) for t in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(dim)
    scores = scores + torch.full((len(x), len(x)), float("-inf"), dtype=torch.float64).triu(1)
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).reshape(len(x), -1) @ w["self_attn.o_proj.weight"].T
