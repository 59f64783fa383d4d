"""The budget of a prefill pass in numbers: ADM-1 to ADM-10, BLK-1 to BLK-3, examples A1 to A16, B1, B2."""

import pytest
from factory import Bench, Room, adder, books, match_and_lock, own_tokens, request

from scheduler_proc.core.admission import PrefillAdder, Verdict, needed_blocks
from scheduler_proc.core.kv import KvCache
from scheduler_proc.core.request import Request

CONTINUE, NO_TOKEN, OTHER = Verdict.CONTINUE, Verdict.NO_TOKEN, Verdict.OTHER


def a1() -> PrefillAdder:
    running = [request(9, 20, 100), request(9, 0, 50), request(9, 100, 10000)]
    return adder(Room(3500), running, ratio=0.5)


def test_a1_reservations_of_running_requests() -> None:
    """A1: 40 + 25 + 2048, the last one clipped."""
    assert books(a1()) == (2113, 1387)


def test_a2_a_request_is_charged_whole() -> None:
    """A2, ADM-6: extend, one page more, and all of M."""
    budget = a1()
    assert budget.add(request(300, 0, 1000)) == (300, CONTINUE)
    assert books(budget) == (3414, 86)


def test_a3_the_next_one_does_not_fit() -> None:
    """A3, ADM-3."""
    budget = a1()
    budget.add(request(300, 0, 1000))
    assert budget.add(request(50, 0, 40)) == (0, NO_TOKEN)
    assert books(budget) == (3414, 86)


@pytest.mark.parametrize(("avail", "admitted"), [(201, 0), (202, 200)])
def test_a4_lock_counts(avail: int, admitted: int) -> None:
    """A4, ADM-3: the match is locked for the test, so its 200 tokens cannot be counted as evictable too."""
    kv = KvCache(avail + 300, 1, True)
    prompt = own_tokens(1, 400)
    tokens = [*prompt[:200], *own_tokens(2, 100)]
    kv.tree.insert(b"".join(i.to_bytes(4, "little") for i in tokens), kv.pool.allocate(300), 0, ("", ""))
    assert (kv.pool.available_tokens, kv.tree.evictable_tokens) == (avail, 300)
    candidate = request(prompt, 0, 100)
    assert match_and_lock(kv, candidate) == 200
    budget = adder(kv)
    assert budget.remaining_total() == avail + 100
    assert budget.add(candidate)[0] == admitted


@pytest.mark.parametrize(
    ("avail", "outcome"), [(69, (0, NO_TOKEN)), (70, (33, NO_TOKEN)), (160, (33, CONTINUE))]
)  # fmt: skip
def test_a5_strict_test_and_padded_charge(avail: int, outcome: tuple[int, Verdict]) -> None:
    """A5, ADM-1, ADM-3: need 33 + 16 + 20 against 69 and 70, charge 48 + 16 + 20; the verdict is on the next."""
    budget = adder(Room(avail, 16))
    assert budget.add(request(33, 0, 20)) == outcome
    if avail == 160:
        assert books(budget) == (84, 76)


def mixed_pass(chunk: int = 64, tokens: int = 10_000) -> PrefillAdder:
    rows = [request(9, 0, 100, number=i) for i in range(4)]
    return adder(Room(tokens, 16), rows, ratio=0.0, chunk=chunk, mixed_rows=4)


def test_a6_a_chunk_is_whole_pages() -> None:
    """A6, ADM-5: 60 tokens are left beside four rows, 48 are taken; nothing is reserved before the last chunk."""
    budget = mixed_pass()
    assert budget.remaining_chunk == 60
    assert budget.add(request(100, 0, 50))[0] == 48
    assert (budget.total_offset, budget.remaining_chunk) == (4 + 48 + 16, 12)


def chunked(computed: int = 48) -> Request:
    made = request(100, 0, 50)
    made.lease.num_computed_tokens = computed
    return made


def test_a7_the_last_chunk_reserves_the_output() -> None:
    """A7, ADM-8: the continuation is not floored to a page; the budget may go below zero."""
    budget = mixed_pass()
    assert budget.continue_chunked(chunked()) == 52
    assert (budget.total_offset, budget.remaining_chunk) == (4 + 64 + 16 + 50, -4)


def test_a8_a_middle_chunk() -> None:
    """A8, ADM-8."""
    budget = mixed_pass(chunk=36)
    assert budget.continue_chunked(chunked()) == 32
    assert budget.total_offset == 4 + 48


@pytest.mark.parametrize("missing", [30, 10_000])
def test_a9_the_continuation_must_progress(missing: int) -> None:
    """A9, ADM-8: also when nothing is left; its pages are only released by progress."""
    budget = mixed_pass(chunk=36, tokens=4 - missing)
    assert budget.remaining_total() == -missing
    assert budget.continue_chunked(chunked()) == 32


def test_adm8_as_many_rows_as_the_chunk_has_tokens() -> None:
    """ADM-8: then a page is computed (SGLang would take a negative length)."""
    budget = mixed_pass(chunk=4)
    assert budget.remaining_chunk == 0
    assert budget.continue_chunked(chunked()) == 16


def test_adm8_what_is_left_in_kv_bounds_the_continuation() -> None:
    """ADM-8: min(rem_chunk, rem_total)."""
    budget = mixed_pass(tokens=4 + 21)
    assert budget.continue_chunked(chunked()) == 21


@pytest.mark.parametrize(("avail", "admitted"), [(201, 0), (202, 160)])
def test_a10_a_retracted_request_is_charged_for_what_is_left(avail: int, admitted: int) -> None:
    """A10, ADM-6: 160 + 40 + 1, in the test and in the charge (SGLang charges 261)."""
    budget = adder(Room(avail))
    assert budget.add(request(100, 60, 100))[0] == admitted
    assert budget.total_offset == (201 if admitted else 0)


def test_a11_without_chunks_the_first_is_taken_however_long() -> None:
    """A11, ADM-4."""
    budget = adder(Room(10_000), max_prefill_tokens=100)
    assert budget.add(request(500, 0, 8)) == (500, OTHER)


@pytest.mark.parametrize(("prompt", "outcome"), [(40, (0, OTHER)), (39, (39, CONTINUE))])
def test_a12_without_chunks_the_second_must_fit_the_input_budget(prompt: int, outcome: tuple[int, Verdict]) -> None:
    """A12, ADM-4: strictly."""
    budget = adder(Room(10_000), max_prefill_tokens=100)
    assert budget.add(request(60, 0, 8))[0] == 60
    assert budget.add(request(prompt, 0, 8, number=2)) == outcome


def test_adm4_with_chunks_the_input_budget_is_no_bound_on_one() -> None:
    """ADM-4: with chunking on only the verdict looks at it."""
    budget = adder(Room(10_000), chunk=1000, max_prefill_tokens=100)
    budget.add(request(60, 0, 8))
    assert budget.add(request(200, 0, 8, number=2)) == (200, OTHER)


def test_a13_a_request_that_ignores_the_end_is_reserved_whole() -> None:
    """A13."""
    running = [request(9, 50, 200, ignore_eos=True), request(9, 50, 200)]
    assert adder(Room(1000), running, ratio=0.4).total_offset == 150 + 60


@pytest.mark.parametrize(("avail", "outcome"), [(37, 0), (38, 10)])
def test_a14_the_batch_is_played_to_its_end(avail: int, outcome: int) -> None:
    """A14, ADM-10: without a tree, for a request that ignores the end of sequence."""
    running = [request(10, 2, 10, ignore_eos=True), request(5, 1, 20, ignore_eos=True)]
    budget = adder(Room(avail, is_sharing=False), running)
    assert budget.add(request(10, 0, 5, ignore_eos=True))[0] == outcome
    left = [budget._left_to_come(made) for made in [request(10, 0, 5), *running]]
    assert left == [5, 8, 19]


@pytest.mark.parametrize(("avail", "outcome"), [(162, 0), (163, 10)])
def test_a15_the_last_one_alive_needs_a_spare_token(avail: int, outcome: int) -> None:
    """A15, ADM-10."""
    running = [request(5, 0, 100, number=i) for i in range(10)]
    budget = adder(Room(avail, is_sharing=False), running, ratio=0.1)
    assert budget.add(request(10, 0, 200, number=11, ignore_eos=True))[0] == outcome


def test_adm10_alone_the_plain_test_decides() -> None:
    """ADM-10: N 48, P 1, I 25: LEN-2 gave M 21; the simulation's spare token would keep it out for ever."""
    alone = request(25, 0, 21, ignore_eos=True)
    assert adder(Room(48, is_sharing=False)).add(alone)[0] == 25
    beside = adder(Room(48, is_sharing=False), [request(1, 0, 0)], ratio=1.0)
    assert beside.add(alone) == (0, NO_TOKEN)


def test_a16_rows_of_a_mixed_step_use_up_budget() -> None:
    """A16, STEP-2: one token each of input, chunk, and both offsets."""
    running = [request(9, 0, 50, number=i) for i in range(8)]
    budget = adder(Room(10_000), running, chunk=64, mixed_rows=8, max_prefill_tokens=200)
    assert (budget.remaining_input, budget.remaining_chunk) == (192, 56)
    assert (budget.total_offset, budget.current_offset) == (408, 8)
    assert budget.add(request(56, 0, 64)) == (56, OTHER)
    assert (budget.remaining_chunk, budget.remaining_input, budget.total_offset) == (0, 136, 529)


@pytest.mark.parametrize(
    ("tokens", "config", "verdict"),
    [
        (20, {}, CONTINUE),
        (10, {}, NO_TOKEN),
        (20, {"chunk": 8}, OTHER),
        (20, {"max_prefill_tokens": 8}, OTHER),
        (10, {"chunk": 8}, NO_TOKEN),
    ],
)
def test_adm1_verdicts(tokens: int, config: dict[str, int], verdict: Verdict) -> None:
    """ADM-1: rem_total counts at zero, and want of KV comes before want of budget."""
    room = Room(20)
    budget = adder(room, **config)  # type: ignore[arg-type]
    budget.add(request(8, 0, 1))
    assert budget.total_offset == 10
    room.tokens = tokens
    assert budget.verdict() is verdict


def test_adm1_the_offset_without_reservations_counts_too() -> None:
    """ADM-1: cur_rem <= 0 is NO_TOKEN, whatever is reserved."""
    budget = adder(Room(20))
    budget.current_offset = 20
    assert budget.remaining_total() == 20 and budget.verdict() is NO_TOKEN


def test_adm3_a_chunkable_request_must_fit_whole() -> None:
    """ADM-3: though only its first chunk would run."""
    assert adder(Room(100), chunk=16).add(request(99, 0, 8)) == (0, NO_TOKEN)
    assert adder(Room(109), chunk=16).add(request(99, 0, 8))[0] == 16


def test_adm6_want_of_pages_in_a_chunk_is_other() -> None:
    """ADM-5: less than a page of the chunk left gives OTHER and charges nothing."""
    budget = adder(Room(1000, 16), chunk=60)
    budget.add(request(48, 0, 8))
    assert budget.remaining_chunk == 12
    before = books(budget)
    assert budget.add(request(100, 0, 8, number=2)) == (0, OTHER)
    assert books(budget) == before


def test_adm6_the_estimate_is_clipped() -> None:
    """ADM-6: at clip_max_new_tokens_estimation, in test and charge."""
    budget = adder(Room(1000), clip_max_new_tokens_estimation=100)
    assert budget.add(request(10, 0, 100_000))[0] == 10
    assert budget.total_offset == 10 + 1 + 100


# Blocks


def blocks(reachable_blocks: int, basis: str) -> int:
    decoding = [request(9, 0, 300), request(9, 0, 800)]
    budget = adder(Room(reachable_blocks * 64, 64), decoding, ratio=0.7, reservation="blocks", reserve_basis=basis)
    return budget.add(request(1000, 0, 500))[0]


def test_b1_blocks_are_rounded_up_once() -> None:
    """B1, BLK-1: 1024 + 500 + 770 = 2294 tokens are 36 blocks; the floor of the original says 35."""
    assert needed_blocks(1024 + 500 + 770, 64) == 36
    assert blocks(36, "full") == 1000 and blocks(35, "full") == 0


def test_b2_blocks_are_integers() -> None:
    """B2, BLK-2, PR-8: 128.5 tokens are 3 blocks of 64."""
    assert needed_blocks(128.5, 64) == 3
    assert type(needed_blocks(128.5, 64)) is int
    assert [needed_blocks(tokens, 64) for tokens in (0, 0.001, 64, 64.001)] == [0, 1, 1, 2]


def test_blk1_what_the_ratio_multiplies() -> None:
    """BLK-1: the remaining output by default, of requests that are half through."""

    def admitted(basis: str) -> int:
        running = [request(9, 400, 500)]
        budget = adder(Room(1024, 64), running, ratio=1.0, reservation="blocks", reserve_basis=basis)
        return budget.add(request(500, 0, 384))[0]

    assert (admitted("remaining"), admitted("full")) == (500, 0)


def test_blk3_a_chunk_that_is_not_the_last_reserves_nothing_for_the_others() -> None:
    """BLK-3: but the candidate itself is tested with its whole output."""
    first, second = request(100, 0, 200), request(20, 0, 20, number=2)
    budget = adder(Room(384, 16), chunk=112, reservation="blocks")
    first.lease.num_computed_tokens = 0
    assert budget.continue_chunked(first, cap=64) == 64
    assert budget.add(second)[0] == 20
    whole = adder(Room(384, 16), chunk=112, reservation="blocks")
    assert whole.continue_chunked(first) == 100
    assert whole.add(second)[0] == 0


@pytest.mark.parametrize(("tokens", "length"), [(255, 0), (256, 20)])
def test_blk3_the_rest_of_a_prompt_in_progress_is_needed(tokens: int, length: int) -> None:
    """BLK-3: 200 tokens, of which 64 are computed in this pass, need 13 blocks; 20 and an output of 16 need 3 more."""
    first, second = request(200, 0, 500), request(20, 0, 16, number=2)
    budget = adder(Room(tokens // 16 * 16, 16), chunk=112, reservation="blocks")
    assert budget.continue_chunked(first, cap=64) == 64
    assert budget.add(second)[0] == length


def test_blk3_the_token_budget_is_charged_once() -> None:
    """BLK-3: the continuation costs its own tokens, no more."""
    budget = adder(Room(10_000, 16), chunk=64, reservation="blocks")
    budget.continue_chunked(chunked(36))
    assert budget.remaining_chunk == 0


def test_adm7_the_lock_stays_with_the_admitted_request() -> None:
    """ADM-7: until it leaves the batch; a refused candidate's is undone."""
    bench = Bench(pages=200)
    prompt = own_tokens(1, 60)
    bench.cache(prompt[:40])
    bench.wait("small", prompt, 0, 20)
    bench.wait("large", [*prompt[:40], 7], 0, 150)
    bench.form(1)
    assert bench.running() == "small" and bench.waiting() == "large"
    (node,) = [node for node in bench.kv.tree.nodes() if len(node.pages) == 40]
    assert node.lock_ref == 1
