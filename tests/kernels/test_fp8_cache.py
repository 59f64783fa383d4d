"""Attention over a KV cache in e4m3: the result is that over the same numbers in the type of the queries."""

import pytest
import torch
from kernel_cases import BF16, FP16, FP32, TOLERANCE, assert_close, integers, normal, paged_batch

from kernels.paged_decode import paged_decode
from kernels.paged_extend import paged_extend
from kernels.rope_kv import rope_and_write_kv

E4M3 = torch.float8_e4m3fn


def both(lens, kv_heads, dim, dtype, page=16):
    """The batch with a cache in e4m3, and with the same numbers in `dtype`."""
    batch = paged_batch(lens, kv_heads, dim, dtype, page=page)
    coded = batch.cache.float().mul(3.0).to(E4M3)
    return batch, coded, coded.to(dtype)


@pytest.mark.parametrize(("dtype", "dim"), [(BF16, 64), (BF16, 128), (FP16, 80), (FP32, 64)])
def test_decode_reads_what_the_codes_mean(guarded, dtype, dim):
    batch, coded, plain = both([1, 17, 64, 129], 2, dim, dtype)
    q = normal(4, 4, dim, dtype=dtype, seed=7)
    found, expected = (paged_decode(q, cache, batch.table, batch.lens, dim**-0.5) for cache in (coded, plain))
    assert_close(found, expected, 3 * TOLERANCE["decode"][dtype])


@pytest.mark.parametrize(("dtype", "dim"), [(BF16, 64), (BF16, 128), (FP16, 80)])
def test_extend_reads_what_the_codes_mean(guarded, dtype, dim):
    lens, new = [40, 9, 130], [40, 5, 33]
    batch, coded, plain = both(lens, 2, dim, dtype)
    cu_q = integers([0, *torch.tensor(new).cumsum(0).tolist()])
    q = normal(sum(new), 4, dim, dtype=dtype, seed=7)
    found, expected = (
        paged_extend(q, cache, batch.table, cu_q, batch.lens, dim**-0.5, max_q_len=40) for cache in (coded, plain)
    )
    # Two kernels on Hopper, and numbers of three times the variance that the tolerance is for.
    assert_close(found, expected, 3 * TOLERANCE["extend"][dtype])


@pytest.mark.parametrize("dtype", [BF16, FP32])
def test_new_keys_and_values_are_rounded_to_the_cache(guarded, dtype):
    qkv = normal(5, 8, 64, dtype=dtype, seed=1) * 100
    q, k, v = qkv.split((4, 2, 2), dim=1)
    angles = normal(9, 32, dtype=FP32, seed=2)
    table = torch.cat((angles.cos(), angles.sin()), 1)
    at = integers([0, 3, 8, 2, 1], torch.int64)
    shape = 3, 2, 2, 16, 64
    coded, plain = torch.zeros(shape, dtype=dtype, device=q.device).to(E4M3), torch.zeros(shape, device=q.device)
    for cache in (coded, plain):
        rope_and_write_kv(q, k, v, table, at, at + 16, cache)
    expected = plain.clamp(-448, 448).to(E4M3)
    assert (expected.float() - plain).abs().max() > 1.0
    assert (coded.float() != expected.float()).float().mean() < 0.01
    torch.testing.assert_close(coded.float(), expected.float(), rtol=0.13, atol=0.01)
