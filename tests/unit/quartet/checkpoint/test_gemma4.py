"""Gemma 4: heads that layers without a window have for themselves, and what is refused."""

from typing import Any

import pytest
from model_folders import CONFIG

from quartet.checkpoint.attention_kinds import Heads
from quartet.checkpoint.spec import parse_spec
from quartet.wire.errors import ModelError

GEMMA4 = {
    **{key: value for key, value in CONFIG.items() if key not in ("hidden_act", "rope_theta")},
    "architectures": ["Gemma4ForCausalLM"],
    "hidden_size_per_layer_input": 0,
    "head_dim": 4,
    "global_head_dim": 8,
    "layer_types": ["sliding_attention", "full_attention"],
}


def test_layers_of_gemma4_have_their_own_heads() -> None:
    """As published files name them, and as transformers 5 saves them."""
    shared = {"attention_k_eq_v": True, "num_global_key_value_heads": 1}
    listed = {"attention_k_eq_v": True, "per_layer_config": {"1": {"head_dim": 8, "num_key_value_heads": 1}}}
    for more in (shared, listed):
        heads = [kind.heads for kind in parse_spec({**GEMMA4, **more}, 64).attention]
        assert heads == [Heads(4, 2, 4), Heads(4, 1, 8, has_values=False)]
    assert [kind.heads for kind in parse_spec(GEMMA4, 64).attention] == [Heads(4, 2, 4), Heads(4, 2, 8)]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"hidden_size_per_layer_input": None}, "hidden_size_per_layer_input 256 is not supported"),
        ({"num_kv_shared_layers": 1}, "num_kv_shared_layers 1"),
        ({"enable_moe_block": True}, "enable_moe_block True"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "must end with full_attention"),
        ({"per_layer_config": [1]}, "per_layer_config .* no object"),
        ({"per_layer_config": {"0": {"skip": ["mlp"]}}}, "skip of per_layer_config"),
    ],
)
def test_parts_of_gemma4_that_are_not_served_are_refused(changes: dict[str, Any], match: str) -> None:
    given = {key: value for key, value in {**GEMMA4, **changes}.items() if value is not None}
    with pytest.raises(ModelError, match=match):
        parse_spec(given, 64)
