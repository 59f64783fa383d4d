"""Norms, the gated activation, and rotary embedding with the cache write, against their references."""

import kernel_cases as cases
import numpy as np
import pytest
import torch
from kernel_cases import (
    BF16,
    DTYPES,
    FP16,
    FP32,
    TOLERANCE,
    assert_close,
    assert_rounded_alike,
    integers,
    norm_weight,
    normal,
)

from kernels.activation import gelu_mul, gelu_mul_reference, silu_mul, silu_mul_reference
from kernels.norm import add_rms_norm, add_rms_norm_reference, rms_norm, rms_norm_reference
from kernels.rope_kv import rope_and_write_kv, rope_and_write_kv_reference

CLOSE = TOLERANCE["elementwise"]
EPS = 1e-5


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "width"), [(4, 576), (1, 64), (3, 1000), (2, 4096)])
def test_norms_match_reference(guarded, rows, width, dtype):
    x, residual = normal(rows, width, dtype=dtype, seed=1), normal(rows, width, dtype=dtype, seed=2)
    weight = norm_weight(width, dtype=dtype, seed=3)
    kept = x.clone(), residual.clone()
    assert_close(rms_norm(x, weight, EPS), rms_norm_reference(x, weight, EPS), CLOSE[dtype])
    y, new_residual = add_rms_norm(x, residual, weight, EPS)
    expected, expected_residual = add_rms_norm_reference(x, residual, weight, EPS)
    assert torch.equal(new_residual, expected_residual)
    assert_close(y, expected, CLOSE[dtype])
    assert_rounded_alike(y, expected)
    assert torch.equal(y, rms_norm(new_residual, weight, EPS))
    assert torch.equal(x, kept[0]) and torch.equal(residual, kept[1])


def test_norm_takes_strided_rows_and_no_rows(guarded):
    x = normal(3, 96, dtype=BF16, seed=1)[:, 32:]
    weight = norm_weight(64, dtype=BF16, seed=3)
    assert_close(rms_norm(x, weight, EPS), rms_norm_reference(x, weight, EPS), CLOSE[BF16])
    assert rms_norm(x[:0], weight, EPS).shape == (0, 64)


def test_norm_uses_eps_and_refuses_misfits():
    x, weight = torch.zeros(2, 64, device=cases.DEVICE), torch.ones(64, device=cases.DEVICE)
    assert (rms_norm(x, weight, EPS) == 0).all()
    with pytest.raises(ValueError, match="do not fit"):
        rms_norm(x, weight[:32], EPS)
    with pytest.raises(ValueError, match="contiguous"):
        add_rms_norm(x, torch.zeros(64, 2, device=cases.DEVICE).T, weight, EPS)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "width"), [(3, 1536), (1, 1), (2, 1025)])
def test_silu_mul_matches_reference(guarded, rows, width, dtype):
    gate_up = normal(rows, 2 * width, dtype=dtype, seed=1)
    assert_close(silu_mul(gate_up), silu_mul_reference(gate_up), CLOSE[dtype])
    assert_close(gelu_mul(gate_up), gelu_mul_reference(gate_up), CLOSE[dtype])
    assert_rounded_alike(silu_mul(gate_up), silu_mul_reference(gate_up))


def test_silu_mul_at_the_ends_of_the_range():
    gate = torch.tensor([[-1e4, -200.0, -88.0, 0.0, 88.0, 200.0, 1e4]], device=cases.DEVICE)
    gate_up = torch.cat((gate, torch.full_like(gate, 2.0)), dim=1)
    with np.errstate(over="ignore"):
        out = silu_mul(gate_up)
    assert_close(out, silu_mul_reference(gate_up), 1e-2)
    assert out[0, :2].abs().max() == 0
    with pytest.raises(ValueError, match="even width"):
        silu_mul(gate)


def rope_inputs(heads, kv_heads, dim, dtype, *, page=16, positions=torch.int64):
    """Six tokens in a fused projection: a page's first and last slot, one skipped token, two equal positions."""
    fused = normal(6, heads + 2 * kv_heads, dim, dtype=dtype, seed=1)
    q, k, v = fused.split((heads, kv_heads, kv_heads), dim=1)
    angles = torch.arange(300)[:, None] * 10000.0 ** (-torch.arange(dim // 2) / (dim // 2))
    table = torch.cat((angles.cos(), angles.sin()), dim=1).to(cases.DEVICE, FP32)
    slots = integers([3 * page, page + 5, -1, 4 * page - 1, 2 * page, page], torch.int64)
    # A page in front of the cache: what -1 would hit, were it not skipped.
    cache = normal(6, 2, kv_heads, page, dim, dtype=dtype, seed=2)[1:]
    return q, k, v, table, integers([0, 299, 17, 5, 5, 128], positions), slots, cache


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 2, 64), (9, 3, 80), (8, 8, 64), (4, 2, 128)])
def test_rope_and_cache_write_match_reference(guarded, heads, kv_heads, dim, dtype):
    *inputs, cache = rope_inputs(heads, kv_heads, dim, dtype)
    expected_cache = cache.clone()
    q = rope_and_write_kv(*inputs, cache)
    expected_q = rope_and_write_kv_reference(*inputs, expected_cache)
    assert_close(q, expected_q, CLOSE[dtype])
    assert_close(cache[:, 0], expected_cache[:, 0], CLOSE[dtype])
    assert torch.equal(cache[:, 1], expected_cache[:, 1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_per_head_norm_before_the_rotation(guarded, dtype):
    *inputs, cache = rope_inputs(4, 2, 64, dtype, page=32, positions=torch.int32)
    weights = {
        name: norm_weight(64, dtype=dtype, seed=seed) for name, seed in (("q_norm", 4), ("k_norm", 5), ("v_norm", 6))
    }
    norms = {**weights, "eps": EPS}
    expected_cache = cache.clone()
    q = rope_and_write_kv(*inputs, cache, **norms)
    expected_q = rope_and_write_kv_reference(*inputs, expected_cache, **norms)
    assert_close(q, expected_q, CLOSE[dtype])
    assert_close(cache, expected_cache, CLOSE[dtype])
    assert_rounded_alike(q, expected_q)


def test_only_the_named_slots_change():
    *inputs, cache = rope_inputs(4, 2, 64, FP16)
    before, in_front = cache.clone(), cache._base[0].clone()
    rope_and_write_kv(*inputs, cache)
    assert torch.equal(cache._base[0], in_front)
    changed = (cache != before).any(-1).any(2).all(1)
    assert sorted((page * 16 + offset) for page, offset in changed.nonzero().tolist()) == [16, 21, 32, 48, 63]


def test_rotation_is_the_identity_at_position_zero():
    *inputs, cache = rope_inputs(4, 2, 64, FP32)
    assert torch.equal(rope_and_write_kv(*inputs, cache)[0], inputs[0][0])


def test_no_tokens_and_misfits():
    q, k, v, table, positions, slots, cache = rope_inputs(4, 2, 64, FP32)
    assert rope_and_write_kv(q[:0], k[:0], v[:0], table, positions[:0], slots[:0], cache).shape == (0, 4, 64)
    with pytest.raises(ValueError, match="int64"):
        rope_and_write_kv(q, k, v, table, positions, slots.int(), cache)
    with pytest.raises(ValueError, match="5 slots"):
        rope_and_write_kv(q, k, v, table, positions, slots[:5], cache)


@pytest.mark.parametrize("dtype", [BF16, FP16])
def test_norm_adds_parts_in_order(guarded, dtype):
    parts, residual = normal(4, 3, 576, dtype=FP32, seed=1), normal(3, 576, dtype=dtype, seed=2)
    weight = norm_weight(576, dtype=dtype, seed=3)
    y, new_residual = add_rms_norm(parts, residual, weight, EPS)
    total = ((parts[0] + parts[1]) + parts[2]) + parts[3]
    expected, expected_residual = add_rms_norm_reference(total.to(dtype), residual, weight, EPS)
    assert torch.equal(new_residual, expected_residual)
    assert_close(y, expected, CLOSE[dtype])
