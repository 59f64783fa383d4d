"""paged_extend against its reference in float64: ragged batches, page edges, padding, poisoned surroundings."""

import itertools

import pytest
from kernel_cases import BF16, DTYPES, FP16, FP32, TOLERANCE, assert_close, integers, normal, paged_batch

from kernels.paged_extend import paged_extend, paged_extend_reference

# (cached tokens, new tokens) per sequence
SPECS = [(0, 17), (40, 9), (0, 1), (31, 33)]
# (query heads, kv heads, head dim)
SHAPES = [(4, 2, 64), (4, 2, 80), (9, 3, 64), (9, 3, 80), (8, 8, 64)]


def ragged(specs):
    """cu_q and the lengths with the new tokens included."""
    new = [count for _, count in specs]
    return integers([0, *itertools.accumulate(new)]), [cached + count for cached, count in specs], max(new)


def check(specs, heads, kv_heads, dim, dtype, page=16, padding=0):
    cu_q, lens, longest = ragged(specs)
    batch = paged_batch(lens, kv_heads, dim, dtype, page=page)
    tokens = int(cu_q[-1])
    q = normal(tokens + padding, heads, dim, dtype=dtype, seed=7)
    rest = (batch.table, cu_q, batch.lens, dim**-0.5)
    out = paged_extend(q, batch.cache, *rest, max_q_len=longest)
    expected = paged_extend_reference(q.double(), batch.cache.double(), *rest, max_q_len=longest)
    assert_close(out[:tokens], expected[:tokens], TOLERANCE["extend"][dtype])
    return out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), SHAPES)
def test_matches_reference(guarded, heads, kv_heads, dim, dtype):
    check(SPECS, heads, kv_heads, dim, dtype)


@pytest.mark.parametrize(("page", "dtype"), [(16, BF16), (32, FP16), (64, FP32), (128, BF16)])
def test_head_dim_128_and_all_page_sizes(guarded, page, dtype):
    check([(120, 9), (0, 33)], 4, 2, 128, dtype, page)


@pytest.mark.parametrize(
    "specs",
    [
        [(0, 32)],
        [(32, 32), (16, 16)],
        [(31, 1), (32, 1), (15, 1)],
        [(0, 1)] * 9,
        [(5, 0), (0, 3), (20, 0), (0, 0), (9, 2), (7, 0)],
        [(0, 8), (0, 8), (0, 8), (0, 7), (0, 9)],
    ],
    ids=["tile", "page edges", "decode rows", "many single", "empty runs", "block edges"],
)
def test_ragged_edges(guarded, specs):
    check(specs, 4, 1, 32, FP32)


def test_padding_rows_are_not_written(guarded):
    out = check([(0, 5), (3, 2)], 4, 2, 64, FP32, padding=6)
    assert out[7:].isnan().all()


def test_query_blocks_cover_every_split_of_tokens(guarded):
    for first in range(1, 20, 3):
        check([(0, first), (2, 20 - first)], 4, 1, 16, FP32)


def test_bad_arguments_are_named():
    cu_q, lens, longest = ragged([(0, 3)])
    batch = paged_batch(lens, 2, 64, FP32)
    q = normal(3, 4, 64, dtype=FP32, seed=1)
    with pytest.raises(ValueError, match="cu_q has 1 entries"):
        paged_extend(q, batch.cache, batch.table, cu_q[:1], batch.lens, 0.1, max_q_len=longest)
    with pytest.raises(ValueError, match="scale 0"):
        paged_extend(q, batch.cache, batch.table, cu_q, batch.lens, 0.0, max_q_len=longest)
