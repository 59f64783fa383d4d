"""How far rotary embedding, norms and activation are from their torch references on random inputs."""

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.kernels.attention_errors import HeadShape, error
from benchmarks.kernels.random_inputs import RandomInputs
from kernels.activation import silu_mul, silu_mul_reference
from kernels.norm import add_rms_norm, add_rms_norm_reference, rms_norm, rms_norm_reference
from kernels.rope_kv import rope_and_write_kv, rope_and_write_kv_reference

EPS = 1e-5


def rope_error(
    make: RandomInputs,
    shape: HeadShape,
    page: int,
    dtype: torch.dtype,
    tokens: int,
    has_norms: bool,
    rope: Callable[..., torch.Tensor] = rope_and_write_kv,
) -> float:
    """Return the largest error of q and k; infinite if v is not exact.

    The slot of one token is -1, so it is not written; slots of no token must stay as they are.
    """
    heads, kv_heads, dim = shape
    fused = make.normal(tokens, heads + 2 * kv_heads, dim, dtype=dtype)
    q, k, v = fused.split((heads, kv_heads, kv_heads), dim=1)
    angles = torch.rand(512, dim // 2, device=make.device) * 6.3
    table = torch.cat((angles.cos(), angles.sin()), dim=1)
    cache = make.normal(-(-tokens // page) + 2, 2, kv_heads, page, dim, dtype=dtype)
    slots = torch.randperm(cache.shape[0] * page, device=make.device)[:tokens]
    slots[tokens // 2] = -1
    positions = torch.randint(512, (tokens,), device=make.device)
    norms = [make.norm_weight(dim, dtype) for _ in range(2)] if has_norms else [None, None]
    expected_cache = cache.clone()
    args = (q, k, v, table, positions, slots)
    out = rope(*args, cache, q_norm=norms[0], k_norm=norms[1])
    expected = rope_and_write_kv_reference(*args, expected_cache, q_norm=norms[0], k_norm=norms[1])
    if not torch.equal(cache[:, 1], expected_cache[:, 1]):
        return float("inf")
    return max(error(out, expected), error(cache[:, 0], expected_cache[:, 0]))


def norm_error(
    make: RandomInputs,
    rows: int,
    width: int,
    dtype: torch.dtype,
    add_norm: Callable[..., Any] = add_rms_norm,
    norm: Callable[..., torch.Tensor] = rms_norm,
) -> float:
    """Return the largest error of both norms; infinite if the stored residual is not exact."""
    x, residual = make.normal(rows, width, dtype=dtype), make.normal(rows, width, dtype=dtype)
    weight = make.norm_weight(width, dtype)
    y, total = add_norm(x, residual, weight, EPS)
    expected, expected_total = add_rms_norm_reference(x, residual, weight, EPS)
    if not torch.equal(total, expected_total):
        return float("inf")
    return max(error(y, expected), error(norm(x, weight, EPS), rms_norm_reference(x, weight, EPS)))


def silu_error(
    make: RandomInputs,
    rows: int,
    width: int,
    dtype: torch.dtype,
    silu: Callable[..., torch.Tensor] = silu_mul,
) -> float:
    """Return the largest error of the gated activation."""
    x = make.normal(rows, 2 * width, dtype=dtype)
    return error(silu(x), silu_mul_reference(x))
