"""Windows, softcap and sinks in both attention kernels, against the reference; what no window reaches is poisoned."""

import itertools

import kernel_cases as cases
import pytest
import torch
from kernel_cases import BF16, FP32, TOLERANCE, assert_close, integers, normal, paged_batch

from kernels.decode_partition import partition_decode
from kernels.paged_decode import paged_decode
from kernels.paged_extend import paged_extend, partition_extend
from kernels.paged_reference import paged_decode_reference, paged_extend_reference
from kernels.paged_tile import Variant

LENS = [1, 40, 129]
SINKS = torch.linspace(-2.0, 3.0, 4, device=cases.DEVICE)
VARIANTS = [Variant(window=1), Variant(window=40), Variant(softcap=2.0), Variant(sinks=SINKS), Variant(70, 2.0, SINKS)]
CASES = [*((variant, FP32) for variant in VARIANTS), (VARIANTS[-1], BF16)]


def forget_before_windows(batch, window, new=None):
    """Poison the pages before the first that a sequence's first new token sees, and their entries in the table.

    Extend reads whole tiles of 32 tokens."""
    page = batch.cache.shape[3]
    for seq, length in enumerate(batch.lens.tolist()):
        unseen = max(length - window, 0) if new is None else max(length - new[seq] - window + 1, 0) // 32 * 32
        for index in range(unseen // page):
            batch.cache[batch.table[seq, index]] = float("nan")
            batch.table[seq, index] = cases.BAD_PAGE


@pytest.mark.parametrize(("variant", "dtype"), CASES)
def test_decode(guarded, variant, dtype):
    batch = paged_batch(LENS, 2, 64, dtype, page=64 if dtype == BF16 else 16)
    q = normal(len(LENS), 4, 64, dtype=dtype, seed=7)
    expected = paged_decode_reference(q.double(), batch.cache.double(), batch.table, batch.lens, 0.125, variant=variant)
    if variant.window:
        forget_before_windows(batch, variant.window)
    out = paged_decode(q, batch.cache, batch.table, batch.lens, 0.125, split_size=64, variant=variant)
    assert_close(out, expected, TOLERANCE["decode"][dtype])


def test_a_window_bounds_what_a_row_costs_and_may_be_split(guarded):
    """A long context has the work of its window, which several programs share where it is long itself."""
    batch = paged_batch([2500, 200], 1, 32, FP32)
    heads = 1, 2, 32, FP32
    ends = {w: int(partition_decode(batch.lens, *heads, split_size=64, window=w)[-2]) for w in (0, 100, 1000)}
    assert ends == {0: 40, 100: 2, 1000: 16}
    variant = Variant(window=1000)
    q = normal(2, 2, 32, dtype=FP32, seed=1)
    expected = paged_decode_reference(q.double(), batch.cache.double(), batch.table, batch.lens, 0.2, variant=variant)
    forget_before_windows(batch, variant.window)
    out = paged_decode(q, batch.cache, batch.table, batch.lens, 0.2, split_size=64, variant=variant)
    assert_close(out, expected, TOLERANCE["decode"][FP32])


def test_sinks_of_an_empty_context_leave_zeros(guarded):
    batch = paged_batch([0, 70], 2, 64, FP32)
    q = normal(2, 4, 64, dtype=FP32, seed=1)
    assert (paged_decode(q, batch.cache, batch.table, batch.lens, 0.1, variant=Variant(sinks=SINKS))[0] == 0).all()


@pytest.mark.parametrize(("variant", "dtype"), CASES)
def test_extend(guarded, variant, dtype):
    specs = [(0, 33), (150, 40), (64, 1), (31, 70)]
    new = [count for _, count in specs]
    batch = paged_batch([a + b for a, b in specs], 2, 64, dtype)
    q = normal(sum(new), 4, 64, dtype=dtype, seed=7)
    cu_q = integers([0, *itertools.accumulate(new)])
    rest = batch.table.clone(), cu_q, batch.lens, 0.125
    expected = paged_extend_reference(q.double(), batch.cache.double(), *rest, max_q_len=70, variant=variant)
    if variant.window:
        forget_before_windows(batch, variant.window, new=new)
    out = paged_extend(q, batch.cache, batch.table, *rest[1:], max_q_len=70, variant=variant)
    assert_close(out, expected, TOLERANCE["extend"][dtype])


def test_a_query_tile_that_is_cut_counts_its_sinks_once(guarded):
    variant = Variant(softcap=2.0, sinks=SINKS)
    batch = paged_batch([500], 1, 32, FP32)
    q = normal(3, 4, 32, dtype=FP32, seed=2)
    rest = batch.table, integers([0, 3]), batch.lens
    assert partition_extend(*rest[1:], 4, 1, 32, FP32, total=3, max_q_len=3).slots
    expected = paged_extend_reference(q.double(), batch.cache.double(), *rest, 0.2, max_q_len=3, variant=variant)
    out = paged_extend(q, batch.cache, *rest, 0.2, max_q_len=3, variant=variant)
    assert_close(out, expected, TOLERANCE["extend"][FP32])


def test_chunks_of_a_window_have_the_bits_of_one_prefill(guarded):
    variant = Variant(window=20)
    batch = paged_batch([90], 2, 64, BF16)
    q = normal(90, 4, 64, dtype=BF16, seed=2)
    rest = {"max_q_len": 90, "variant": variant}
    whole = paged_extend(q, batch.cache, batch.table, integers([0, 90]), batch.lens, 0.125, **rest)
    for cut in (17, 48):
        first = paged_extend(q[:cut], batch.cache, batch.table, integers([0, cut]), integers([cut]), 0.125, **rest)
        last = paged_extend(q[cut:], batch.cache, batch.table, integers([0, 90 - cut]), batch.lens, 0.125, **rest)
        assert torch.equal(torch.cat((first, last)), whole)
