"""Bits that must not change: with chunking, with the batch, with the pages' buffers, between decode and extend."""

import itertools

import kernel_cases as cases
import pytest
import torch
from kernel_cases import BF16, FP16, FP32, TOLERANCE, assert_close, integers, normal, paged_batch

from kernels import decode_partition
from kernels.paged_decode import paged_decode
from kernels.paged_extend import paged_extend

SCALE = 0.125


def extend(q, batch, bounds):
    longest = max(b - a for a, b in itertools.pairwise(bounds))
    return paged_extend(q, batch.cache, batch.table, integers(bounds), batch.lens, SCALE, max_q_len=longest)


def decode(q, batch, split_size=64):
    return paged_decode(q, batch.cache, batch.table, batch.lens, SCALE, split_size=split_size)


@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (9, 3)])
def test_chunked_prefill_equals_one_shot(heads, kv_heads, dtype):
    length = 60
    batch = paged_batch([length], kv_heads, 64, dtype)
    q = normal(length, heads, 64, dtype=dtype, seed=2)
    whole = extend(q, batch, [0, length])
    for cuts in ([0, 17, 49, length], [0, 32, length]):
        parts = [extend(q[a:b], batch.forget(0, b), [0, b - a]) for a, b in itertools.pairwise(cuts)]
        assert torch.equal(torch.cat(parts), whole), cuts


@pytest.mark.parametrize("dtype", [FP16, BF16])
def test_extend_row_does_not_depend_on_its_batch(dtype):
    news = [9, 21, 14]
    bounds = [0, 9, 30, 44]
    batch = paged_batch([40, 21, 50], 2, 64, dtype)
    q = normal(sum(news), 4, 64, dtype=dtype, seed=2)
    together = extend(q, batch, bounds)
    for seq in range(3):
        begin, end = bounds[seq], bounds[seq + 1]
        alone = extend(q[begin:end], batch.rows(slice(seq, seq + 1)), [0, end - begin])
        assert torch.equal(alone, together[begin:end])


@pytest.mark.parametrize("dtype", [FP16, BF16])
def test_decode_row_does_not_depend_on_its_batch(dtype):
    batch = paged_batch([40, 129, 17], 2, 64, dtype)
    q = normal(3, 4, 64, dtype=dtype, seed=2)
    together = decode(q, batch)
    for seq in range(3):
        assert torch.equal(decode(q[seq : seq + 1], batch.rows(slice(seq, seq + 1))), together[seq : seq + 1])


@pytest.mark.skipif(cases.ON_GPU, reason="the two tiles use different tensor core instructions")
@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_decode_row_equals_extend_row_within_one_split(dtype):
    lens = [64, 33, 1]
    batch = paged_batch(lens, 2, 64, dtype)
    q = normal(3, 4, 64, dtype=dtype, seed=2)
    assert torch.equal(decode(q, batch), extend(q, batch, [0, 1, 2, 3]))


def test_page_places_do_not_matter():
    one, other = (paged_batch([100], 2, 64, BF16, seed=0) for _ in range(2))
    moved = torch.randperm(other.cache.shape[0] - 1, generator=torch.Generator().manual_seed(5)).to(cases.DEVICE) + 1
    cache = other.cache.clone()
    cache[moved] = other.cache[1:]
    used = other.table[0, :7].long()
    other.table[0, :7] = moved[used - 1].int()
    other.cache = cache
    q = normal(1, 4, 64, dtype=BF16, seed=2)
    assert not torch.equal(one.table, other.table)
    assert torch.equal(decode(q, one), decode(q, other))


@pytest.mark.skipif(cases.ON_GPU, reason="the number of programs is the GPU's there")
@pytest.mark.parametrize("heads", [4, 6])
def test_number_of_programs_does_not_matter(monkeypatch, heads):
    """Rows folded by one program in registers, cut between programs and reduced, or reduced split by split."""
    batch = paged_batch([129, 40, 300], 2, 64, BF16)
    q = normal(3, heads, 64, dtype=BF16, seed=2)
    results = []
    for programs in (1, 5, 100):
        monkeypatch.setattr(decode_partition, "PROGRAMS_WITHOUT_GPU", programs)
        results.append(decode(q, batch))
    assert all(torch.equal(result, results[0]) for result in results)


def test_split_size_moves_no_more_than_rounding():
    batch = paged_batch([129, 100], 2, 64, FP32)
    q = normal(2, 4, 64, dtype=FP32, seed=2)
    assert_close(decode(q, batch, 64), decode(q, batch, 256), 2 * TOLERANCE["decode"][FP32])
