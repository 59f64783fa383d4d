"""Decode attention over shared prefixes against the reference in float64, which knows of no groups."""

import itertools

import kernel_cases as cases
import pytest
import torch
from kernel_cases import BF16, FP16, FP32, TOLERANCE, assert_close, integers, normal, paged_batch

from kernels import extend_partition
from kernels.paged_decode import paged_decode
from kernels.paged_reference import paged_decode_reference
from kernels.prefix_decode import SharedPrefixes, partition_prefixes, prefix_decode

PAGE = 16


def shared(lens, groups, kv_heads, dim, dtype, page=PAGE):
    """A batch whose groups, (prefix tokens, rows), share their first pages, and what tells a kernel so.

    The prefix's pages are those of the group's last row; one group more is absent."""
    batch, rows = paged_batch(lens, kv_heads, dim, dtype, page=page), len(lens)
    tokens, members, slots = [0] * rows, [], []
    for length, own in groups:
        for row in own:
            batch.table[row, : length // page] = batch.table[own[-1], : length // page]
            tokens[row] = length
        members += own
        slots.append(own[-1])
    ends = [0, *itertools.accumulate(len(own) for _, own in groups)]
    padded = members + [0] * (rows - len(members))
    lengths = [length for length, _ in groups]
    given = [*ends, ends[-1]], [*lengths, 0], [*slots, 0], padded, tokens
    return batch, SharedPrefixes(*(integers(values) for values in given))


def tails(batch, prefixes, page=PAGE):
    """Page table and lengths of what follows the prefixes."""
    table = batch.table.clone()
    for row, tokens in enumerate(prefixes.tokens.tolist()):
        table[row] = torch.roll(batch.table[row], -(tokens // page))
    return table, batch.lens - prefixes.tokens


def grouped(q, batch, prefixes, split_size=64, page=PAGE):
    kv_heads, scale = batch.cache.shape[2], q.shape[2] ** -0.5
    items = partition_prefixes(prefixes, q.shape[1], kv_heads, q.shape[2], q.dtype)
    parts = prefix_decode(q, batch.cache, batch.table, prefixes, items, scale)
    table, lens = tails(batch, prefixes, page)
    return paged_decode(q, batch.cache, table, lens, scale, split_size=split_size, prefixes=parts)


def check(lens, groups, heads, kv_heads, dim, dtype, page=PAGE, split_size=64):
    batch, prefixes = shared(lens, groups, kv_heads, dim, dtype, page)
    q = normal(len(lens), heads, dim, dtype=dtype, seed=7)
    out = grouped(q, batch, prefixes, split_size, page)
    expected = paged_decode_reference(q.double(), batch.cache.double(), batch.table, batch.lens, dim**-0.5)
    assert_close(out, expected, TOLERANCE["decode"][dtype])


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "dtype"),
    [(4, 2, 128, BF16), (9, 3, 80, FP16), (4, 4, 32, FP32), (16, 1, 32, FP32)],
)
def test_matches_reference(guarded, heads, kv_heads, dim, dtype):
    """Two groups and rows of none between them; tails within a page, of one split and of several."""
    lens = [65, 49, 150, 97, 17, 190]
    check(lens, [(48, [0, 3, 1]), (64, [5, 2])], heads, kv_heads, dim, dtype)


@pytest.mark.parametrize("page", [32, 64, 128])
def test_all_page_sizes(guarded, page):
    check([129, 200, 140], [(128, [2, 0, 1])], 4, 2, 32, FP32, page)


def test_more_rows_than_a_tile_and_a_prefix_in_several_parts(guarded, monkeypatch):
    """Six rows of 4 heads are two tiles of rows; the eight of keys are cut, as programs are left."""
    monkeypatch.setattr(extend_partition, "PROGRAMS_WITHOUT_GPU", 200)
    rows = list(range(6))
    check([257 + row for row in rows] + [40], [(256, rows)], 8, 2, 16, FP32, split_size=None)


@pytest.mark.skipif(cases.ON_GPU, reason="the number of programs and the tile are the GPU's there")
def test_parts_are_as_many_as_there_are_programs_for(monkeypatch):
    _, prefixes = shared([641] * 6 + [100], [(640, [0, 1, 2, 3, 4, 5])], 2, 16, FP32)
    for programs, parts in ((2, 1), (12, 3), (400, 5)):
        monkeypatch.setattr(extend_partition, "PROGRAMS_WITHOUT_GPU", programs)
        items = partition_prefixes(prefixes, 8, 2, 16, FP32)
        live = [item for item in items.items.tolist() if item[extend_partition.END.value]]
        assert len(live) == 2 * parts
        assert [row[:3] for row in items.rows[:6].tolist()] == [[parts, row // 4 * parts, row % 4] for row in range(6)]


def test_a_batch_without_groups_has_the_bits_of_decode_alone(guarded):
    lens = [65, 1, 200]
    batch, prefixes = shared(lens, [], 2, 32, FP32)
    q = normal(3, 4, 32, dtype=FP32, seed=7)
    alone = paged_decode(q, batch.cache, batch.table, batch.lens, 32**-0.5, split_size=64)
    assert torch.equal(grouped(q, batch, prefixes), alone)


def test_the_row_whose_pages_are_read_does_not_matter():
    lens, groups = [80, 100, 90], [(64, [0, 1, 2])]
    batch, prefixes = shared(lens, groups, 2, 32, FP32)
    q = normal(3, 4, 32, dtype=FP32, seed=7)
    out = grouped(q, batch, prefixes)
    # A copy of the same tokens in other pages, as a row has until they are replaced by shared ones.
    copied = batch.cache[batch.table[0, :4].long()]
    batch.cache = torch.cat((batch.cache, copied))
    batch.table[0, :4] = torch.arange(4, device=batch.table.device) + len(batch.cache) - 4
    assert torch.equal(grouped(q, batch, prefixes._replace(slots=integers([0, 0]))), out)
