"""What one H100 SXM can do at most, and how much attention asks of it: the floors beside the measured times.

Attention is that of the models below benchmarks/models: 8 KV heads of dimension 128 in bf16, 16 or 32 query heads.
"""

KV_HEADS, HEAD_DIM, BYTES = 8, 128, 2
PEAK_BYTES_PER_S, PEAK_FLOPS = 3.35e12, 989e12
"""The data sheet's memory bandwidth and dense bf16 rate."""
READ_GB_PER_S, MATRIX_TFLOP_PER_S = 3070.0, 757.0
"""The highest rates measured: a kernel that only reads, and a large matrix product."""


def kv_bytes(tokens: int) -> int:
    """Return the bytes of K and V of so many tokens in one layer."""
    return tokens * KV_HEADS * HEAD_DIM * 2 * BYTES


def extend_flops(batch: int, new_tokens: int, cached_tokens: int, heads: int) -> float:
    """Return the operations of causal attention of `new_tokens` each on top of `cached_tokens`."""
    return 4 * heads * HEAD_DIM * batch * (new_tokens * new_tokens / 2 + new_tokens * cached_tokens)


def decode_gb_per_s(batch: int, context: int, us: float) -> float:
    """Return the rate at which a decode attention of `us` microseconds reads its KV."""
    return kv_bytes(batch * context) / us / 1e3


def extend_tflop_per_s(batch: int, new_tokens: int, cached_tokens: int, heads: int, us: float) -> float:
    """Return the rate of a prefill attention of `us` microseconds."""
    return extend_flops(batch, new_tokens, cached_tokens, heads) / us / 1e6
