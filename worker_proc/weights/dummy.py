"""Random weights in the shape and format of a spec, made on the device: for measuring speed without a checkpoint."""

from collections.abc import Iterator

import torch
from torch import Tensor

from quartet.checkpoint.spec import ModelSpec
from worker_proc.weights.quantized import Weight, quantized
from worker_proc.weights.tensors import ExpertTensors, LayerTensors, ModelTensors, Shard

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

    q_size = spec.num_heads * spec.head_dim // shard.size
    kv_size = spec.num_kv_heads * spec.head_dim // shard.size

    def qk_norm(projection: int) -> Tensor | None:
        return None if spec.qk_norm == "none" else ones(spec.head_dim if spec.qk_norm == "head" else projection)

    def experts(layer: int) -> ExpertTensors | None:
        own, hidden = spec.experts_of(layer), spec.hidden_size
        if own is None:
            return None
        width = own.width // shard.size
        return ExpertTensors(
            router=normal(own.count, hidden),
            gate_up=normal(own.count, 2 * width, hidden),
            down=normal(own.count, hidden, width),
            shared_gate=normal(1, hidden) if own.shared_width else None,
        )

    def layers() -> Iterator[LayerTensors]:
        for i in range(spec.num_layers):
            width = spec.mlp_width(i) // shard.size
            yield LayerTensors(
                attention_norm=ones(spec.hidden_size),
                qkv=linear("model.layers.0.self_attn.q_proj", q_size + 2 * kv_size, spec.hidden_size),
                qkv_bias=normal(q_size + 2 * kv_size) if spec.has_qkv_bias else None,
                q_norm=qk_norm(q_size),
                k_norm=qk_norm(kv_size),
                output=linear("model.layers.0.self_attn.o_proj", spec.hidden_size, q_size),
                output_bias=normal(spec.hidden_size) if spec.has_output_bias else None,
                mlp_norm=ones(spec.hidden_size),
                gate_up=linear("model.layers.0.mlp.gate_proj", 2 * width, spec.hidden_size) if width else None,
                down=linear("model.layers.0.mlp.down_proj", spec.hidden_size, width) if width else None,
                experts=experts(i),
            )

    return ModelTensors(
        embedding=normal(spec.vocab_size, spec.hidden_size),
        layers=layers(),
        final_norm=ones(spec.hidden_size),
        lm_head=None if spec.is_tied else linear("lm_head", spec.vocab_size, spec.hidden_size),
    )
