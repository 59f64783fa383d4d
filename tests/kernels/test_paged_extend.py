"""paged_extend against its reference in float64: ragged batches, page edges, padding, poisoned surroundings."""

import itertools

import kernel_cases as cases
import pytest
import torch
from kernel_cases import BF16, DTYPES, FP16, FP32, TOLERANCE, assert_close, integers, normal, paged_batch

from kernels import extend_partition
from kernels.paged_extend import paged_extend, partition_extend
from kernels.paged_reference import paged_extend_reference

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


@pytest.mark.parametrize(
    ("specs", "heads", "kv_heads", "dim", "dtype", "parts"),
    [
        # Cut at 4 tiles of 32 keys each; the last tile of keys is beyond the first rows of the query tile.
        ([(250, 16)], 8, 2, 64, FP32, {2}),
        ([(250, 16)], 8, 2, 64, BF16, {2}),
        # Two sequences with tiles to cut, one without, one of no token.
        ([(512, 3), (5, 9), (300, 0), (270, 2)], 4, 1, 80, FP32, {1, 2, 4}),
        ([(0, 40), (640, 1)], 2, 1, 32, FP16, {1, 5}),
    ],
    ids=["one", "one in bfloat16", "several", "beside a prompt"],
)
def test_few_query_tiles_on_long_contexts_are_cut_along_the_keys(
    guarded, monkeypatch, specs, heads, kv_heads, dim, dtype, parts
):
    monkeypatch.setattr(extend_partition, "PROGRAMS_WITHOUT_GPU", 8)
    cu_q, lens, longest = ragged(specs)
    shape = heads, kv_heads, dim, dtype
    plan = partition_extend(cu_q, integers(lens), *shape, total=int(cu_q[-1]), max_q_len=longest)
    live = [item for item in plan.items.tolist() if item[extend_partition.END.value]]
    # On a GPU the tiles and the number of programs are its own.
    assert cases.ON_GPU or {item[extend_partition.PARTS.value] for item in live} == parts
    check(specs, heads, kv_heads, dim, dtype)


@pytest.mark.parametrize("programs", [3, 8, 40, 300])
def test_items_cover_each_key_of_each_query_tile_once(monkeypatch, programs):
    monkeypatch.setattr(extend_partition, "PROGRAMS_WITHOUT_GPU", programs)
    specs = [(1000, 70), (0, 0), (129, 1), (31, 33), (4000, 5)]
    cu_q, lens, longest = ragged(specs)
    plan = partition_extend(cu_q, integers(lens), 4, 1, 64, FP32, total=int(cu_q[-1]), max_q_len=longest)
    found, slots = {}, []
    for item in plan.items.tolist():
        seq, start, new, context, first, begin, end, slot, part, parts = item[:10]
        if not end:
            continue
        assert (start, new, context) == (int(cu_q[seq]), specs[seq][1], lens[seq])
        assert begin < end and (slot >= 0) == (parts > 1) and part < parts
        slots += [slot + part] if slot >= 0 else []
        found.setdefault((seq, first), []).append((begin, end))
        # Each row has a key in each of its tiles.
        assert (end - 1 if part < parts - 1 else begin) * plan.block_n <= context - new + first
    assert len(set(slots)) == len(slots) and all(slot < plan.slots for slot in slots)
    tiles = {(seq, first) for seq, (_, new) in enumerate(specs) for first in range(0, new, plan.tile_tokens)}
    assert found.keys() == tiles
    for (seq, first), bounds in found.items():
        seen = min(lens[seq], specs[seq][0] + first + plan.tile_tokens)
        assert [0, *(end for _, end in bounds)] == [*(begin for begin, _ in bounds), -(-seen // plan.block_n)]


@pytest.mark.skipif(cases.ON_GPU, reason="the number of programs is the GPU's there")
def test_a_cut_changes_no_more_than_rounding_and_no_rerun(monkeypatch):
    cu_q, lens, longest = ragged([(380, 4)])
    batch = paged_batch(lens, 2, 64, FP32)
    args = normal(4, 8, 64, dtype=FP32, seed=7), batch.cache, batch.table, cu_q, batch.lens, 0.125
    results = []
    for programs in (1, 8, 8):
        monkeypatch.setattr(extend_partition, "PROGRAMS_WITHOUT_GPU", programs)
        results.append(paged_extend(*args, max_q_len=longest))
    whole, cut, again = results
    assert torch.equal(cut, again) and not torch.equal(cut, whole)
    assert_close(cut, whole, 2 * TOLERANCE["extend"][FP32])


def test_bad_arguments_are_named():
    cu_q, lens, longest = ragged([(0, 3)])
    batch = paged_batch(lens, 2, 64, FP32)
    q = normal(3, 4, 64, dtype=FP32, seed=1)
    with pytest.raises(ValueError, match="cu_q has 1 entries"):
        paged_extend(q, batch.cache, batch.table, cu_q[:1], batch.lens, 0.1, max_q_len=longest)
    with pytest.raises(ValueError, match="scale 0"):
        paged_extend(q, batch.cache, batch.table, cu_q, batch.lens, 0.0, max_q_len=longest)
    other = partition_extend(cu_q, batch.lens, 8, 2, 64, FP32, total=3, max_q_len=longest)
    with pytest.raises(ValueError, match=r"a partition of \d x 32 tiles"):
        paged_extend(q, batch.cache, batch.table, cu_q, batch.lens, 0.1, max_q_len=longest, partition=other)
