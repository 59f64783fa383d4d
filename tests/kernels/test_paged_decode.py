"""paged_decode against its reference in float64, at page edges, with poisoned surroundings."""

import itertools

import kernel_cases as cases
import pytest
import torch
from interpreter_options import raising_on_overflow
from kernel_cases import BF16, DTYPES, FP16, FP32, TOLERANCE, assert_close, integers, normal, paged_batch

from kernels import decode_partition
from kernels.decode_partition import default_split_size, partition_decode
from kernels.paged_decode import decode_workspace_numel, paged_decode
from kernels.paged_reference import paged_decode_reference

# (query heads, kv heads, head dim)
SHAPES = [(4, 2, 64), (4, 2, 80), (9, 3, 64), (9, 3, 80), (8, 8, 64)]
LENS = [1, 17, 64, 129]


def run(q, batch, **options):
    return paged_decode(q, batch.cache, batch.table, batch.lens, q.shape[2] ** -0.5, split_size=64, **options)


def expected(q, batch):
    return paged_decode_reference(q.double(), batch.cache.double(), batch.table, batch.lens, q.shape[2] ** -0.5)


def check(lens, heads, kv_heads, dim, dtype, page=16):
    batch = paged_batch(lens, kv_heads, dim, dtype, page=page)
    q = normal(len(lens), heads, dim, dtype=dtype, seed=7)
    assert_close(run(q, batch), expected(q, batch), TOLERANCE["decode"][dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), SHAPES)
def test_matches_reference(guarded, heads, kv_heads, dim, dtype):
    check(LENS, heads, kv_heads, dim, dtype)


@pytest.mark.parametrize(("page", "dtype"), [(16, BF16), (32, FP16), (64, FP32), (128, BF16)])
def test_head_dim_128_and_all_page_sizes(guarded, page, dtype):
    check([130, 63], 4, 2, 128, dtype, page)


def test_small_head_dim_and_sixteen_heads_a_group(guarded):
    check([33, 16], 16, 1, 32, FP32)


def test_more_splits_than_the_reduce_takes_at_once(guarded):
    batch = paged_batch([70, 64 * 17 + 5], 1, 32, FP32)
    # The largest scores come last, so that the earlier blocks' sums must be scaled down.
    batch.cache[batch.table[1, 68].long(), 0] *= 8.0
    q = normal(2, 2, 32, dtype=FP32, seed=1)
    assert_close(run(q, batch), expected(q, batch), TOLERANCE["decode"][FP32])


def test_splits_that_grow_with_the_context(guarded):
    """8 splits of the smallest size are allowed, then larger ones: just below, at and beyond both steps."""
    batch = paged_batch([1024, 1025, 4096 + 33], 1, 16, FP32)
    q = normal(3, 2, 16, dtype=FP32, seed=3)
    out = paged_decode(q, batch.cache, batch.table, batch.lens, 0.25)
    reference = paged_decode_reference(q.double(), batch.cache.double(), batch.table, batch.lens, 0.25)
    assert_close(out, reference, TOLERANCE["decode"][FP32])


def test_the_workspace_that_the_worker_makes_is_enough(guarded):
    """Sized by ceil(context / default_split_size), which no row exceeds though its splits may be larger."""
    batch = paged_batch([1025, 700], 1, 16, FP32)
    q = normal(2, 2, 16, dtype=FP32, seed=3)
    splits = sum(-(-length // default_split_size(2)) for length in (1025, 700))
    workspace = torch.empty(decode_workspace_numel(splits, 2, 16), device=cases.DEVICE)
    out = paged_decode(q, batch.cache, batch.table, batch.lens, 0.25, workspace=workspace)
    assert torch.equal(out, paged_decode(q, batch.cache, batch.table, batch.lens, 0.25))


def test_empty_context_gives_zeros(guarded):
    batch = paged_batch([5, 0, 70], 2, 64, BF16)
    q = normal(3, 4, 64, dtype=BF16, seed=1)
    out = run(q, batch)
    assert (out[1] == 0).all()
    assert_close(out, expected(q, batch), TOLERANCE["decode"][BF16])


@pytest.mark.parametrize("lens", [[5, 190, 70], [190, 190, 190, 190], [700], []])
def test_rows_within_a_longer_query_have_the_bits_they_have_alone(lens):
    """The device alone knows where they begin; rows of an empty context at the end are none and write nothing."""
    padded = paged_batch([*lens, 0, 0, 0], 2, 64, FP32)
    total, first = 11, 4
    fused = normal(total, 8, 64, dtype=FP32, seed=3)
    q, out = fused[:, 2:6], torch.full((total, 4, 64), 7.0, device=cases.DEVICE)
    found = run(q, padded, out=out, first_row=integers([9, first])[1:])
    assert found is out
    own = slice(first, first + len(lens))
    if lens:
        batch = padded.rows(slice(0, len(lens)))
        assert torch.equal(out[own], run(q[own], batch))
    out[own] = 7.0
    assert (out == 7.0).all()


def test_empty_batch():
    batch = paged_batch([3], 2, 64, FP32).rows(slice(0, 0))
    assert run(normal(0, 4, 64, dtype=FP32, seed=1), batch).shape == (0, 4, 64)


def test_q_may_be_a_view(guarded):
    batch = paged_batch([20, 65], 2, 64, FP32)
    fused = normal(2, 8, 64, dtype=FP32, seed=3)
    q = fused[:, 2:6]
    assert not q.is_contiguous()
    assert_close(run(q, batch), expected(q, batch), TOLERANCE["decode"][FP32])


def test_workspace_is_used_and_changes_nothing():
    batch = paged_batch(LENS, 2, 64, FP32)
    q = normal(4, 4, 64, dtype=FP32, seed=3)
    splits = sum(-(-length // 64) for length in LENS)
    workspace = torch.full((decode_workspace_numel(splits, 4, 64),), 5.0, device=cases.DEVICE)
    out = run(q, batch, workspace=workspace)
    assert torch.equal(out, run(q, batch))
    assert (workspace != 5.0).any()


def test_too_small_a_workspace_shows_as_nan_and_stays_in_bounds():
    batch = paged_batch([60, 129, 129], 2, 64, FP32)
    q = normal(3, 4, 64, dtype=FP32, seed=3)
    fits = decode_workspace_numel(4, 4, 64)
    guarded = torch.full((2 * fits,), 5.0, device=cases.DEVICE)
    out = run(q, batch, workspace=guarded[:fits])
    assert_close(out[:2], expected(q, batch)[:2], TOLERANCE["decode"][FP32])
    assert out[2].isnan().all()
    assert (guarded[fits:] == 5.0).all()


@pytest.mark.skipif(cases.ON_GPU, reason="the GPU check allocates such a cache for real")
def test_pages_beyond_two_to_the_31_elements(tmp_path):
    page_elements = 2 * 1 * 16 * 64
    pages = 2**31 // page_elements + 2
    backing = tmp_path / "cache"
    with backing.open("wb") as file:
        file.truncate(pages * page_elements * 2)
    cache = torch.from_file(str(backing), shared=False, size=pages * page_elements, dtype=FP16)
    cache = cache.view(pages, 2, 1, 16, 64)
    cache[-1] = normal(2, 1, 16, 64, dtype=FP16, seed=0)
    batch = cases.PagedBatch(cache, cases.integers([[pages - 1]]), cases.integers([9]))
    q = normal(1, 2, 64, dtype=FP16, seed=1)
    small = cases.PagedBatch(cache[-1:].clone(), cases.integers([[0]]), batch.lens)
    with raising_on_overflow():
        assert torch.equal(run(q, batch), run(q, small))


def test_bad_arguments_are_named():
    batch = paged_batch([3], 2, 64, FP32)
    q = normal(1, 4, 64, dtype=FP32, seed=1)
    with pytest.raises(ValueError, match="split_size 40"):
        paged_decode(q, batch.cache, batch.table, batch.lens, 0.1, split_size=40)
    with pytest.raises(ValueError, match="does not fit cache"):
        paged_decode(q[:, :3], batch.cache, batch.table, batch.lens, 0.1)
    with pytest.raises(ValueError, match="does not fit cache"):
        paged_decode(q.half(), batch.cache, batch.table, batch.lens, 0.1)
    with pytest.raises(ValueError, match="disagree"):
        paged_decode(q, batch.cache, batch.table, batch.lens[:0], 0.1)
    with pytest.raises(ValueError, match="contiguous"):
        paged_decode(q.repeat(1, 1, 2)[:, :, ::2], batch.cache, batch.table, batch.lens, 0.1)


def partitioned(lens, kv_heads=2, unit=64):
    """(programs that take part, 0 for whole pairs; bounds of the runs; ends of the rows) of a partition."""
    partition = partition_decode(integers(lens), kv_heads, 2, 64, FP32, split_size=unit).tolist()
    return partition[0], partition[1 : -len(lens)], partition[-len(lens) :]


def test_a_partition_assigns_every_unit_once_and_evenly(monkeypatch):
    monkeypatch.setattr(decode_partition, "_resident_programs", lambda device, per_sm: 8)
    active, bounds, ends = partitioned([129, 40, 0, 500])
    assert ends == [6, 8, 10, 26]
    # Four splits each for seven programs: with the eighth none would be done sooner.
    assert active == 7 and bounds == [0, 4, 8, 12, 16, 20, 23, 26, 26]


def test_programs_have_equally_many_splits_of_long_rows(monkeypatch):
    monkeypatch.setattr(decode_partition, "_resident_programs", lambda device, per_sm: 24)
    active, bounds, ends = partitioned([16 * 128, 16 * 128], unit=None)
    # A split has two units here, and 24 programs would have one or two splits.
    assert ends == [32, 64] and active == 16
    assert bounds == [4 * min(program, 16) for program in range(25)]
    # Of 9 units the last split is not whole. Each of 20 splits has a program to itself only if none is left out.
    monkeypatch.setattr(decode_partition, "_resident_programs", lambda device, per_sm: 40)
    active, bounds, ends = partitioned([9 * 128, 9 * 128], unit=None)
    assert ends == [18, 36] and active == 40
    begins = [pair * 9 + 2 * split for pair in range(4) for split in range(5)]
    taken = [sum(before <= unit < after for unit in begins) for before, after in itertools.pairwise(bounds)]
    assert max(taken) == 1 and sum(taken) == 20


def test_a_partition_assigns_whole_pairs_of_rows_of_similar_length():
    programs = len(partitioned([64])[1]) - 1
    rows = programs // 2
    active, bounds, ends = partitioned([190] * (rows - 1) + [130])
    assert active == 0 and ends[-1] == 6 * rows
    assert bounds == [3 * min(pair, 2 * rows) for pair in range(programs + 1)]


def test_empty_rows_at_the_end_take_no_part_in_a_partition(monkeypatch):
    monkeypatch.setattr(decode_partition, "_resident_programs", lambda device, per_sm: 8)
    for lens in ([129, 40, 500], [190] * 4, [190], []):
        padded = partition_decode(integers([*lens, 0, 0]), 2, 2, 64, FP32, split_size=64, skip_empty=True).tolist()
        if lens:
            active, bounds, ends = partitioned(lens)
            assert padded == [active, *bounds, *ends, ends[-1], ends[-1]]
        else:
            assert padded[1:] == [0] * 11


@pytest.mark.parametrize(
    ("lens", "is_whole_pairs"),
    [([190] * 2, True), ([190] * 3, True), ([190], False), ([190, 190, 600], False), ([600, 600, 500], True)],
)
def test_fewer_pairs_than_programs_are_assigned_whole_if_they_are_similar_and_not_too_few(
    monkeypatch, lens, is_whole_pairs
):
    monkeypatch.setattr(decode_partition, "_resident_programs", lambda device, per_sm: 11)
    active, bounds, ends = partitioned(lens)
    assert (active == 0) == is_whole_pairs and bounds[-1] == ends[-1]
    if is_whole_pairs:
        units = [-(-length // 64) for length in lens for _ in range(2)]
        assert bounds == [sum(units[:pair]) for pair in range(12)]


def test_rows_assigned_in_whole_pairs_have_the_bits_they_have_alone():
    rows = (len(partitioned([64])[1]) - 1) // 2
    batch = paged_batch([190] * rows, 2, 64, FP32)
    q = normal(rows, 4, 64, dtype=FP32, seed=5)
    assert not partitioned([190] * rows)[0] and partitioned([190])[0]
    assert torch.equal(run(q, batch)[:1], run(q[:1], batch.rows(slice(0, 1))))
