"""Step deltas against the slot table: what is applied, in which order, and what is refused."""

import numpy as np
import pytest

from quartet.wire.frames import Chunk, Enter, SamplingParams, Step, pack_ids, unpack_ids
from quartet.wire.ids import Epoch
from worker_proc.contract import Capacity, StepError
from worker_proc.slots import SlotTable, StepRows

CAPACITY = Capacity(page_size=4, page_count=10, max_slots=4, vocab_size=50, context_length=16, device="cpu")


def step(
    release: list[int] | None = None,
    enter: list[Enter] | None = None,
    pages: list[int] | None = None,
    chunks: list[Chunk] | None = None,
    decode: bool = True,
) -> Step:
    return Step(
        Epoch(1),
        1,
        pack_ids(release or []),
        enter or [],
        pack_ids(pages or []),
        chunks or [],
        decode,
    )


def entry(slot: int, length: int, pages: list[int], cached: int = 0, generation: int = 1) -> Enter:
    ids = pack_ids(list(range(1, length + 1)))
    return Enter(slot, generation, ids, length, cached, pack_ids(pages), SamplingParams(), 0)


def run(table: SlotTable, frame: Step) -> StepRows:
    rows = table.apply(frame)
    table.commit(rows)
    return rows


def test_decode_rows_are_the_active_slots_past_their_prefill() -> None:
    table = SlotTable(CAPACITY)
    first = run(
        table, step(enter=[entry(2, 6, [1, 2]), entry(0, 3, [3])], chunks=[Chunk(2, 4, False), Chunk(0, 3, True)])
    )
    # Slot 0 samples by its last chunk, slot 2 is in mid-prefill: neither decodes.
    assert (first.decode.tolist(), first.sampled.tolist()) == ([], [0])
    second = run(table, step(chunks=[Chunk(2, 2, True)]))
    assert (second.decode.tolist(), second.sampled.tolist()) == ([0], [2, 0])
    third = run(table, step())
    assert third.sampled.tolist() == [0, 2]
    assert table.kv_length[[0, 2]].tolist() == [5, 7]


def test_chunks_start_where_the_cache_ends() -> None:
    table = SlotTable(CAPACITY)
    rows = run(table, step(enter=[entry(1, 9, [4, 5, 6], cached=4)], chunks=[Chunk(1, 3, False)]))
    assert (rows.chunks[0].start, rows.chunks[0].ids.tolist()) == (4, [5, 6, 7])
    rows = run(table, step(chunks=[Chunk(1, 2, True)]))
    assert (rows.chunks[0].start, rows.chunks[0].ids.tolist()) == (7, [8, 9])


def test_release_comes_before_enter_and_the_generation_changes() -> None:
    table = SlotTable(CAPACITY)
    run(table, step(enter=[entry(0, 2, [1, 5], generation=5)], chunks=[Chunk(0, 2, True)]))
    rows = run(table, step(release=[0], enter=[entry(0, 3, [2], generation=6)], chunks=[Chunk(0, 3, True)]))
    assert (rows.released, unpack_ids(rows.owners.generations)) == ([0], [6])
    assert unpack_ids(run(table, step()).owners.generations) == [6]
    run(table, step(release=[0], enter=[entry(0, 3, [2], generation=7)], chunks=[Chunk(0, 3, True)]))
    assert unpack_ids(run(table, step()).owners.generations) == [7]
    assert table.pages.tables[0, 0].tolist() == [2, 0, 0, 0, 0]
    assert table.kv_length[0] == 4


def test_decode_false_holds_rows_back() -> None:
    table = SlotTable(CAPACITY)
    run(table, step(enter=[entry(0, 2, [1]), entry(1, 2, [2])], chunks=[Chunk(0, 2, True), Chunk(1, 2, True)]))
    assert run(table, step(decode=False)).sampled.tolist() == []
    assert table.kv_length[[0, 1]].tolist() == [2, 2]
    assert run(table, step()).sampled.tolist() == [0, 1]
    assert table.kv_length[[0, 1]].tolist() == [3, 3]


def test_page_writes_of_enter_and_step_reach_the_rows_in_order() -> None:
    table = SlotTable(CAPACITY)
    frame = step(enter=[entry(3, 5, [7, 8])], pages=[3, 2, 9, 3, 1, 10], chunks=[Chunk(3, 5, True)])
    assert run(table, frame).page_writes.tolist() == [[3, 0, 7], [3, 1, 8], [3, 2, 9], [3, 1, 10]]
    assert table.pages.tables[0, 3].tolist() == [7, 10, 9, 0, 0]


def test_fresh_pages_are_those_that_hold_nothing_yet() -> None:
    table = SlotTable(CAPACITY)
    frame = step(
        enter=[entry(0, 9, [4, 5, 6], cached=5), entry(1, 4, [7, 8], cached=0)],
        pages=[0, 3, 9],
        chunks=[Chunk(0, 4, True)],
    )
    rows = run(table, frame)
    assert [pages.tolist() for pages in rows.fresh_pages] == [[6, 7, 8, 9]]
    assert (rows.sampled.tolist(), len(run(table, step(decode=False)).page_writes)) == ([0], 0)


def test_positions_without_a_page_are_refused() -> None:
    table = SlotTable(CAPACITY)
    run(table, step(enter=[entry(0, 3, [2])], chunks=[Chunk(0, 3, True)]))
    assert table.pages.at(np.array([0]), np.array([3])).tolist() == [2]
    with pytest.raises(StepError, match="slot 0 has no page for position 4"):
        table.pages.at(np.array([0]), np.array([4]))
    with pytest.raises(StepError, match="beyond the context"):
        table.pages.at(np.array([0]), np.array([20]))


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (step(enter=[entry(4, 2, [1])]), "slot 4 is outside 0..3"),
        (step(release=[-1]), "slot -1 is outside"),
        (step(enter=[entry(0, 2, [1])]), "entered while it is taken"),
        (step(enter=[entry(1, 17, [1])]), "17 ids for a context of 16"),
        (step(enter=[entry(1, 4, [1], cached=4)]), "at least one must be computed"),
        (step(enter=[entry(1, 4, [11])]), "outside slots, row and pool"),
        (step(enter=[entry(1, 4, [0])]), "outside slots, row and pool"),
        (step(enter=[entry(1, 4, [1, 2, 3, 4, 5, 6])]), "outside slots, row and pool"),
        (step(enter=[entry(1, 4, [-1])]), "outside slots, row and pool"),
        (step(pages=[0, 0, 1, 4, 0, 1]), "outside slots, row and pool"),
        (step(pages=[0, -1, 1]), "outside slots, row and pool"),
        (step(pages=[0, 0, 0]), "outside slots, row and pool"),
        (step(pages=[0, 0, 11]), "outside slots, row and pool"),
        (step(pages=[0, 5, 1]), "outside slots, row and pool"),
        (step(pages=[0, 1]), "no \\(slot, index, page\\) triples"),
        (step(chunks=[Chunk(0, 1, True)]), "slot 0 is not in prefill"),
        (step(chunks=[Chunk(3, 1, True)]), "slot 3 is not in prefill"),
        (step(enter=[entry(1, 4, [1])], chunks=[Chunk(1, 4, False)]), "chunk 0..4"),
        (step(enter=[entry(1, 4, [1])], chunks=[Chunk(1, 5, True)]), "chunk 0..5"),
        (step(enter=[entry(1, 4, [1])], chunks=[Chunk(1, 2, False), Chunk(1, 2, True)]), "two chunks of one slot"),
        (
            step(enter=[Enter(1, 1, pack_ids([1, 50]), 2, 0, pack_ids([1]), SamplingParams(), 0)]),
            "outside the vocabulary of 50",
        ),
        (
            step(enter=[Enter(1, 1, pack_ids([1, -1]), 2, 0, pack_ids([1]), SamplingParams(), 0)]),
            "outside the vocabulary of 50",
        ),
        (step(enter=[Enter(1, 1, pack_ids([1]), 1, 0, b"\0\0\0", SamplingParams(), 0)]), "id array of 3 bytes"),
        (step(enter=[Enter(1, 1, b"\0\0\0", 2, 0, b"", SamplingParams(), 0)]), "id array of 3 bytes"),
    ],
)
def test_contradictory_steps_are_refused(frame: Step, message: str) -> None:
    table = SlotTable(CAPACITY)
    run(table, step(enter=[entry(0, 2, [1])], chunks=[Chunk(0, 2, True)]))
    with pytest.raises(StepError, match=message):
        run(table, frame)


def test_an_abandoned_step_deactivates_its_slots_and_no_others() -> None:
    table = SlotTable(CAPACITY)
    run(table, step(enter=[entry(0, 2, [1]), entry(1, 2, [2])], chunks=[Chunk(0, 2, True), Chunk(1, 2, True)]))
    frame = step(enter=[entry(2, 2, [3])], decode=False)
    table.abandon(frame, table.apply(frame))
    assert run(table, step()).sampled.tolist() == [0, 1]
    run(table, step(release=[0, 2], enter=[entry(0, 2, [4])], chunks=[Chunk(0, 2, True)]))
    assert np.count_nonzero(table._state) == 2
    table.clear()
    assert (np.count_nonzero(table._state), table.pages.tables.any()) == (0, np.False_)


def test_a_chunk_needs_a_page_for_every_position() -> None:
    table = SlotTable(CAPACITY)
    run(table, step(enter=[entry(1, 10, [5, 6])], chunks=[Chunk(1, 8, False)]))
    table.pages.check(1, 0, 8)
    table.pages.check(1, 3, 5)
    for start, end in ((0, 9), (8, 9), (0, 99)):
        with pytest.raises(StepError, match="lacks a page"):
            table.pages.check(1, start, end)
