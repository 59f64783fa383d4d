"""Random weights in the shape and format of a spec, made on the device: for measuring speed without a checkpoint."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from quartet.checkpoint.attention_kinds import Heads
from quartet.checkpoint.linear_attention import LinearSpec
from quartet.checkpoint.spec import ModelSpec, norm_names
from worker_proc.weights.quantized import Weight, quantized
from worker_proc.weights.tensors import (
    PROJECTION_ROWS,
    ExpertTensors,
    LayerTensors,
    LinearTensors,
    ModelTensors,
    Shard,
)

_STD = 0.02


def dummy_tensors(
    spec: ModelSpec, shard: Shard, dtype: torch.dtype, device: torch.device, seed: int = 0
) -> ModelTensors:
    """Return normal random weights (norms are ones), the same ones for the same seed, device and shard."""
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device).normal_(0.0, _STD, generator=generator)

    def linear(name: str, *shape: int) -> Weight:
        weight, method = normal(*shape), spec.quantization
        return quantized(weight, method) if method is not None and method.covers(f"{name}.weight", shape) else weight

    def ones(size: int) -> Tensor:
        return torch.ones(size, dtype=dtype, device=device)

    def attention(heads: Heads) -> dict[str, Any]:
        q_size, kv_size = heads.query_size // shard.size, heads.kv_size // shard.size
        rows = heads.size // shard.size + q_size * spec.is_gated

        def qk_norm(projection: int) -> Tensor | None:
            return None if spec.qk_norm == "none" else ones(heads.head_dim if spec.qk_norm == "head" else projection)

        return {
            "qkv": linear("model.layers.0.self_attn.q_proj", rows, spec.hidden_size),
            "qkv_bias": normal(rows) if spec.has_qkv_bias else None,
            "q_norm": qk_norm(q_size),
            "k_norm": qk_norm(kv_size),
            "output": linear("model.layers.0.self_attn.o_proj", spec.hidden_size, q_size),
            "output_bias": normal(spec.hidden_size) if spec.has_output_bias else None,
            "sinks": normal(heads.num_heads // shard.size) if spec.has_sinks else None,
        }

    def norms() -> dict[str, Any]:
        return {name: ones(spec.hidden_size) for name in norm_names(spec)}

    def layers() -> Iterator[LayerTensors]:
        for i in range(spec.num_layers):
            width = spec.mlp_width(i) // shard.size
            if spec.linear is not None and i in spec.linear_layers:
                own = _linear_attention(spec.linear, spec.hidden_size, normal, linear)
            else:
                own = attention(spec.attention[i].heads)
            yield LayerTensors(
                **norms(),
                **own,
                gate_up=linear("model.layers.0.mlp.gate_proj", 2 * width, spec.hidden_size) if width else None,
                down=linear("model.layers.0.mlp.down_proj", spec.hidden_size, width) if width else None,
                experts=_experts(spec, i, shard, normal),
                scale=ones(1) if spec.has_layer_scales else None,
            )

    return ModelTensors(
        embedding=normal(spec.vocab_size, spec.hidden_size),
        layers=layers(),
        final_norm=ones(spec.hidden_size),
        lm_head=None if spec.is_tied else linear("lm_head", spec.vocab_size, spec.hidden_size),
    )


def _experts(spec: ModelSpec, layer: int, shard: Shard, normal: Callable[..., Tensor]) -> ExpertTensors | None:
    own, hidden = spec.experts_of(layer), spec.hidden_size
    if own is None:
        return None
    width, method = own.width // shard.size, spec.quantization

    def stack(rows: int, columns: int) -> Weight:
        weight = normal(own.count, rows, columns)
        return weight if method is None else quantized(weight.flatten(0, 1), method)

    return ExpertTensors(
        router=normal(own.count, hidden),
        gate_up=stack(2 * width, hidden),
        down=stack(hidden, width),
        shared_gate=normal(1, hidden) if own.shared_width else None,
        router_bias=normal(own.count) if own.has_biases else None,
        gate_up_bias=normal(own.count, 2 * width) if own.has_biases else None,
        down_bias=normal(own.count, hidden) if own.has_biases else None,
    )


def _linear_attention(
    shape: LinearSpec, hidden: int, normal: Callable[..., Tensor], linear: Callable[..., Weight]
) -> dict[str, Any]:
    rows, conv = sum(shape.projections), normal(shape.conv_width, shape.channels)
    decay = torch.ones((2, shape.num_value_heads), device=conv.device)
    norm = torch.ones(shape.value_dim, dtype=conv.dtype, device=conv.device)
    return {
        "qkv": linear("model.layers.0.linear_attn.in_proj_qkv", rows + -rows % PROJECTION_ROWS, hidden),
        "qkv_bias": None,
        "q_norm": None,
        "k_norm": None,
        "output": linear("model.layers.0.linear_attn.out_proj", hidden, shape.values),
        "output_bias": None,
        "linear": LinearTensors(conv, decay, norm),
    }
