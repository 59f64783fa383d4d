"""How a model is divided among the ranks of --tp-size: the numbers that work, the tensors that are split, refusals.

A rank has an equal share of the heads and of the MLP's width: rows of the projections to q, k, v, gate and up, columns
of those back. Embedding, output layer and norms are whole on every rank.
"""

import math
import re

from quartet.checkpoint.spec import ModelSpec
from quartet.wire.errors import ConfigError

_SPLIT = re.compile(
    r"\.(?:self_attn\.(?:(?:q|k|v|qkv)_proj\.(?:weight|bias)|o_proj\.weight|sinks)|mlp\.\w+_proj\.weight)$"
)


def is_split(name: str) -> bool:
    """Return whether each rank holds a part of the checkpoint's tensor of that name, rather than all of it."""
    return _SPLIT.search(name) is not None


def rank_counts(spec: ModelSpec) -> list[int]:
    """Return the numbers of ranks that share heads and MLP evenly, ascending."""
    heads = [kind.heads for kind in spec.kinds]
    shared = math.gcd(spec.intermediate_size, *(one.num_heads for one in heads), *(one.num_kv_heads for one in heads))
    return [n for n in range(1, shared + 1) if shared % n == 0]


def check_ranks(spec: ModelSpec, count: int) -> None:
    """Raise ConfigError unless `count` ranks can share the model."""
    if count == 1:
        return
    undivided = {
        "linear attention": spec.linear is not None,
        "experts": spec.experts is not None,
        "quantised weights": spec.quantization is not None,
        "a norm over all heads": spec.qk_norm == "projection",
    }
    for part, is_there in undivided.items():
        if is_there:
            raise ConfigError(f"a model with {part} cannot be divided among ranks yet: drop --tp-size {count}")
    working = rank_counts(spec)
    if count not in working:
        listed = ", ".join(map(str, working))
        fewest = min((kind.heads for kind in spec.kinds), key=lambda heads: heads.num_kv_heads)
        raise ConfigError(
            f"--tp-size {count} does not divide {fewest.num_kv_heads} KV heads, {fewest.num_heads} heads and an MLP of "
            f"{spec.intermediate_size}: give one of {listed}"
        )
