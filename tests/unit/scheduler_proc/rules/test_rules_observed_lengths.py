"""Admission by the lengths that outputs have had: OBS-1 to OBS-3, example S4."""

from typing import Any

import pytest
from factory import DEFAULTS, Bench, Room, greedy, oracle, own_tokens, request, steady
from hypothesis import given
from hypothesis import strategies as st

from quartet.wire.config import SchedulerConfig
from quartet.wire.frames import Abort
from scheduler_proc.core.admission import PrefillAdder, Verdict
from scheduler_proc.core.observed import ENOUGH, KEPT, MOST_CLASSES, ObservedLengths
from scheduler_proc.core.peak import peak_of
from tests.support.core_rig import CoreRig

OBSERVED = SchedulerConfig(reservation="observed")


def seen(*lengths: int, times: int = 1, tenant: str = "") -> ObservedLengths:
    found = ObservedLengths(True)
    for _ in range(times):
        for length in lengths:
            found.note(tenant, length)
    return found


def budget(tokens: int, lengths: ObservedLengths, running: list[Any] | None = None, page_size: int = 1) -> PrefillAdder:
    return PrefillAdder(OBSERVED, Room(tokens, page_size), running or [], 0.7, -1, 0, lengths)


def test_s4_the_peak_of_a_batch() -> None:
    """S4: (a, b) of (100, 50), (200, 10), (50, 80)."""
    assert peak_of(sorted([(-50, 100), (-10, 200), (-80, 50)])) == 380
    assert peak_of([]) == 0


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 50)), max_size=8))
def test_obs2_the_peak_is_that_of_the_batch_played_to_its_end(batch: list[tuple[int, int]]) -> None:
    """OBS-2."""
    played = [sum(held + at for left, held in batch if left >= at) for at in range(31)]
    assert peak_of(sorted((-left, held) for left, held in batch)) == max(played)


def test_obs1_the_quantile_of_the_longer_ones_at_most_m() -> None:
    """OBS-1: of 1 to 100, 0.8 of all, and of those above 50; M bounds it, and stands where none was longer."""
    lengths = seen(*range(1, 101))
    assert [lengths.expected("", outputs, 4096) for outputs in (0, 50, 99, 100)] == [81, 91, 100, 4096]
    assert lengths.expected("", 50, 60) == 60


def test_obs1_the_last_1000_count() -> None:
    """OBS-1: after a shift the old lengths are gone within 1,000 ends."""
    lengths = seen(10, times=KEPT)
    for _ in range(KEPT):
        lengths.note("", 500)
    assert lengths.expected("", 0, 4096) == 500 and len(lengths._all) == KEPT


def test_obs1_a_tenant_with_few_lengths_is_taken_for_all() -> None:
    """OBS-1: 50 of its own count for it."""
    lengths = seen(1000, times=200, tenant="long")
    for _ in range(ENOUGH - 1):
        lengths.note("short", 10)
    assert lengths.expected("short", 0, 4096) == 1000
    lengths.note("short", 10)
    assert lengths.expected("short", 0, 4096) == 10 and lengths.expected("long", 0, 4096) == 1000


def test_obs1_tenants_are_bounded() -> None:
    """OBS-1: the one that has ended nothing for longest is forgotten."""
    lengths = ObservedLengths(True)
    for number in range(MOST_CLASSES + 1):
        for _ in range(2):
            lengths.note(f"tenant-{number}", 10)
        lengths.note("tenant-0", 10)
    assert len(lengths._by_class) == MOST_CLASSES
    assert "tenant-0" in lengths._by_class and "tenant-1" not in lengths._by_class


@pytest.mark.parametrize("page_size", [1, 16])
def test_obs2_a_candidate_is_admitted_up_to_the_peak(page_size: int) -> None:
    """OBS-2: outputs of 10; r has had 4. They hold 20 + 30 tokens and a page each when r ends and the candidate has 6
    outputs, then the candidate alone 30 + 10."""
    lengths = seen(10, times=ENOUGH)

    def fits(tokens: int) -> bool:
        running = request(16, 4, 4096, 1)
        running.lease.num_computed_tokens = 20
        running.lease.pages = list(range(-(-20 // page_size)))
        candidate = request(30, 0, 4096, 2)
        own = len(running.lease.pages) * page_size
        adder = budget(tokens - own, lengths, [running], page_size)
        return bool(adder.add(candidate)[0])

    peak = 20 + 30 + 2 * page_size + 2 * 6
    assert fits(peak) and not fits(peak - 1)


def test_obs2_nothing_is_reserved_beside_the_peak() -> None:
    """OBS-2: the ratio has no say, and no fall of it lets a request in that did not fit."""
    lengths = seen(10, times=ENOUGH)
    running = request(16, 4, 4096, 1)
    running.lease.num_computed_tokens = 20
    running.lease.pages = list(range(20))
    adder = budget(25, lengths, [running])
    assert (adder.total_offset, adder.verdict()) == (0, Verdict.CONTINUE)
    candidate = request(30, 0, 4096, 2)
    assert adder.add(candidate) == (0, Verdict.NO_TOKEN) and adder.ratio_that_fits(candidate) == 0.0
    assert adder.fits_without(candidate, [running], 0) and adder.fits_without_compat(candidate, [running], 0)


def test_obs3_below_50_lengths_the_ratio_decides() -> None:
    """OBS-3."""
    running = request(16, 4, 1000, 1)
    few, none = (
        budget(2000, seen(10, times=ENOUGH - 1), [running]),
        PrefillAdder(DEFAULTS, Room(2000), [running], 0.7, -1),
    )
    assert few.total_offset == none.total_offset > 0


def test_obs1_only_outputs_that_ended_by_themselves_count() -> None:
    """OBS-1."""
    rig = CoreRig(reservation="observed")
    rig.submit([1, 2], params=greedy(6))
    aborted = rig.submit([1, 3], params=greedy(20))
    for _ in range(4):
        rig.step()
    rig.send(Abort(aborted))
    rig.run()
    assert rig.scheduler._table._lengths._all._sorted == [6]


def test_obs1_other_reservations_keep_no_lengths() -> None:
    """OBS-1."""
    rig = CoreRig()
    rig.submit([1, 2], params=greedy(6))
    rig.run()
    assert not rig.scheduler._table._lengths.are_enough and not len(rig.scheduler._table._lengths._all)


def test_obs2_more_run_than_by_the_ratio_and_outputs_are_the_same() -> None:
    """OBS-2: all ask for 400 and have 30 at most; a request that runs past what is expected is retracted, not lost."""
    most = {}
    for reservation in ("ratio", "observed"):
        rig = CoreRig(pages=120, page_size=4, slots=40, context=2048, reservation=reservation)
        for length in range(ENOUGH):
            rig.scheduler._table._lengths.note("", 10 + length % 20)
        rids = {rig.submit(own_tokens(number, 8), params=steady(20 + number % 20)): number for number in range(1, 40)}
        for rid in rids:
            rig.scheduler._table.choices(rid)[0].max_new_tokens = 400
        most[reservation] = 0
        while rig.step():
            most[reservation] = max(most[reservation], len(rig.scheduler._batch.running))
            if most[reservation] > 30:
                break
    assert most["observed"] >= 1.3 * most["ratio"]


def test_obs2_outputs_do_not_depend_on_the_reservation() -> None:
    """OBS-2, OBS-3: with expectations that are too low requests are retracted and go on."""
    rig = CoreRig(pages=40, page_size=4, slots=12, reservation="observed")
    for _ in range(ENOUGH):
        rig.scheduler._table._lengths.note("", 3)
    rids = [rig.submit(own_tokens(number, 6), params=steady(40)) for number in range(1, 12)]
    rig.run()
    assert rig.scheduler._counters.retractions
    assert [rig.outputs(rid) for rid in rids] == [oracle(own_tokens(number, 6), 40, -1) for number in range(1, 12)]


def test_obs2_what_one_holder_alone_locks_comes_back() -> None:
    """OBS-2: of a shared prefix nothing, until the last of its holders is alone with it."""
    bench = Bench(pages=200)
    shared = own_tokens(7, 40)
    bench.cache(shared)
    first = bench.run("a", [*shared, 1, 2], 0, 8)
    assert bench.kv.sole_tokens(first.lease) == len(first.lease.pages)
    second = bench.run("b", [*shared, 3, 4], 0, 8)
    assert bench.kv.sole_tokens(first.lease) == bench.kv.sole_tokens(second.lease) == len(first.lease.pages) - 40
