"""Mixtures of experts in config.json: which layers have them, what is refused, how many weights a token uses."""

from typing import Any

import pytest
from model_folders import CONFIG

from quartet.checkpoint.spec import expected_shapes, parse_spec
from quartet.sizing.model_bytes import weight_bytes
from quartet.wire.errors import ModelError

MOE: dict[str, Any] = {
    **CONFIG,
    "architectures": ["Qwen3MoeForCausalLM"],
    "num_hidden_layers": 6,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "norm_topk_prob": True,
}


@pytest.mark.parametrize(
    ("changes", "layers"),
    [
        ({}, {0, 1, 2, 3, 4, 5}),
        ({"mlp_only_layers": [0, 5]}, {1, 2, 3, 4}),
        ({"decoder_sparse_step": 2}, {1, 3, 5}),
        ({"decoder_sparse_step": 3, "mlp_only_layers": [2]}, {5}),
    ],
)
def test_layers_with_experts_are_those_of_transformers(changes: dict[str, Any], layers: set[int]) -> None:
    spec = parse_spec({**MOE, **changes}, 64)
    assert {layer for layer in range(6) if spec.experts_of(layer) is not None} == layers
    shapes = expected_shapes(spec)
    for layer in range(6):
        assert (f"model.layers.{layer}.mlp.experts.7.up_proj.weight" in shapes) == (layer in layers)
        assert (f"model.layers.{layer}.mlp.up_proj.weight" in shapes) == (layer not in layers)


def test_all_experts_are_stored_and_a_token_uses_few() -> None:
    spec = parse_spec({**MOE, "mlp_only_layers": [0]}, 64)
    assert [spec.active_width(layer) for layer in (0, 1)] == [CONFIG["intermediate_size"], 48]
    fewer = parse_spec({**MOE, "mlp_only_layers": [0], "num_experts": 7}, 64)
    hidden = CONFIG["hidden_size"]
    assert weight_bytes(spec, 2) - weight_bytes(fewer, 2) == 5 * 2 * (3 * 24 * hidden + hidden)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"num_experts": None}, "num_experts"),
        ({"num_experts": 1 << 20}, "num_experts"),
        ({"num_experts": 4096, "num_hidden_layers": 64}, "4096 experts in each of 64 layers"),
        ({"num_experts_per_tok": 9}, "num_experts_per_tok 9 .* 8 experts"),
        ({"norm_topk_prob": "yes"}, "norm_topk_prob"),
        ({"mlp_only_layers": ["0"]}, "mlp_only_layers"),
        ({"n_shared_experts": 1}, "n_shared_experts 1"),
        ({"quantization_config": {"quant_method": "fp8"}}, "experts with quantised weights"),
        ({"routed_scaling_factor": 2.5}, "routed_scaling_factor 2.5"),
        ({"architectures": ["MixtralForCausalLM"], "mlp_only_layers": [1]}, "mlp_only_layers"),
    ],
)
def test_what_contradicts_itself_or_is_not_served_is_refused(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(ModelError, match=match):
        parse_spec({**MOE, **changes}, 64)
