"""What length a request may have: LEN-1 to LEN-3, examples E8 to E10."""

import pytest
from factory import greedy, match_and_lock, own_tokens, request
from hypothesis import given, settings
from hypothesis import strategies as st

from quartet.wire.config import SchedulerConfig
from quartet.wire.errors import RequestError
from quartet.wire.frames import Accepted, SamplingParams, unpack_ids
from scheduler_proc.core.admission import PrefillAdder
from scheduler_proc.core.kv import KvCache
from scheduler_proc.core.lengths import LengthRules, ceil_to
from tests.support.core_rig import CoreRig


def admit(rules: LengthRules, prompt: int, max_new: int | None) -> int | None:
    """Return M, or None for a request that is refused with 400."""
    try:
        rules.check_prompt(prompt)
    except RequestError as error:
        assert error.status == 400
        return None
    return rules.clamp_max_new_tokens(max_new, prompt)


def test_e8_the_pool_bounds_the_output() -> None:
    """E8, LEN-2."""
    assert admit(LengthRules(4096, 512, 64), 100, 1000) == 319


@pytest.mark.parametrize(("prompt", "max_new", "expected"), [(447, 5, 0), (448, 5, None), (506, 5, None)])
def test_e9_a_prompt_that_the_pool_cannot_hold(prompt: int, max_new: int, expected: int | None) -> None:
    """E9, LEN-1, BLK-4: 447 + 64 < 512 <= 448 + 64."""
    assert admit(LengthRules(4096, 512, 64), prompt, max_new) == expected


@pytest.mark.parametrize(("prompt", "max_new", "expected"), [(4000, None, 94), (4089, 10, 5), (4090, 10, None)])
def test_e10_the_context_bounds_the_output(prompt: int, max_new: int | None, expected: int | None) -> None:
    """E10, LEN-1, LEN-2."""
    assert admit(LengthRules(4096, 65536, 16), prompt, max_new) == expected


@settings(max_examples=150, deadline=None)
@given(
    page_size=st.sampled_from([1, 4, 16, 64]),
    pages=st.integers(2, 80),
    context=st.integers(8, 3000),
    prompt=st.integers(1, 1500),
    max_new=st.one_of(st.none(), st.integers(0, 3000)),
    reservation=st.sampled_from(["ratio", "full", "blocks"]),
    chunk_pages=st.sampled_from([-1, 1, 4]),
    is_sharing=st.booleans(),
    ignore_eos=st.booleans(),
)
def test_len2_what_is_accepted_is_admitted_on_an_idle_engine(
    page_size: int, pages: int, context: int, prompt: int, max_new: int | None,
    reservation: str, chunk_pages: int, is_sharing: bool, ignore_eos: bool,
) -> None:  # fmt: skip
    """LEN-2, BLK-4: else the head of the queue would block for ever. And its whole output has pages."""
    rules = LengthRules(context, pages * page_size, page_size)
    clamped = admit(rules, prompt, max_new)
    if clamped is None:
        return
    kv = KvCache(pages, page_size, is_sharing)
    candidate = request(prompt, 0, clamped, ignore_eos=ignore_eos)
    match_and_lock(kv, candidate)
    chunk = chunk_pages * page_size if chunk_pages > 0 else -1
    budget = PrefillAdder(SchedulerConfig(reservation=reservation), kv, [], 0.7, chunk)  # type: ignore[arg-type]
    length, _ = budget.add(candidate)
    assert length > 0
    assert ceil_to(prompt + max(clamped, 1) - 1, page_size) <= kv.capacity_tokens


@pytest.mark.parametrize("is_sharing", [True, False])
def test_len2_the_largest_accepted_request_runs_to_its_end(is_sharing: bool) -> None:
    """LEN-2, ADM-10: 48 tokens of KV, I 25: M 21 is admitted, alone, though ignore_eos without a tree asks for more."""
    rig = CoreRig(pages=48, page_size=1, disable_radix_cache=not is_sharing)
    rid = rig.submit(list(range(1, 26)), params=greedy(500))
    rig.run()
    assert len(rig.outputs(rid)) == 21 and rig.streams[rid, 0].ending == "length"


def test_len1_auto_truncation_keeps_the_longest_prompt_that_is_accepted() -> None:
    """LEN-1: the beginning of the prompt is kept; without the setting it is refused."""
    prompt = list(range(1, 91))
    rig = CoreRig(pages=8, page_size=8)
    assert rig.streams[rig.submit(prompt, 4), 0].ending == "context_length_exceeded"
    rig = CoreRig(pages=8, page_size=8, allow_auto_truncate=True)
    rid = rig.submit(prompt, 4)
    (held,) = rig.scheduler._table.live()
    assert rig.scheduler._intake.lengths is not None
    longest = rig.scheduler._intake.lengths.longest_prompt()
    assert unpack_ids(held.prompt_key) == prompt[:longest]
    assert admit(LengthRules(4096, 64, 8), longest, 4) is not None
    assert admit(LengthRules(4096, 64, 8), longest + 1, 4) is None
    rig.run()
    assert rig.streams[rid, 0].ending == "length"


@settings(max_examples=100, deadline=None)
@given(context=st.integers(8, 400), pages=st.integers(2, 60), page_size=st.sampled_from([1, 4, 16]))
def test_len1_auto_truncation_never_yields_what_is_refused(context: int, pages: int, page_size: int) -> None:
    """LEN-1: unless the engine is too small for any prompt."""
    rules = LengthRules(context, pages * page_size, page_size)
    longest = rules.longest_prompt()
    if admit(rules, 1, 1) is not None:
        assert admit(rules, longest, 1) is not None and admit(rules, longest + 1, 1) is None


def test_len2_the_clamp_is_reported_to_the_api() -> None:
    """LEN-2: Accepted carries M."""
    rig = CoreRig(pages=8, page_size=64, context=4096)
    told = []
    handle = rig.scheduler.handle
    rig.scheduler.handle = lambda event, now: told.extend(sent := handle(event, now)) or sent  # type: ignore
    rig.submit(own_tokens(1, 100), 1000)
    assert [frame.max_new_tokens for _, frame in told if isinstance(frame, Accepted)] == [319]


def test_len3_min_new_tokens_is_clamped_to_m() -> None:
    """LEN-3."""
    rig = CoreRig(pages=8, page_size=64)
    rig.submit(own_tokens(1, 100), params=SamplingParams(max_new_tokens=1000, min_new_tokens=700))
    (held,) = rig.scheduler._table.live()
    assert (held.max_new_tokens, held.min_new_tokens) == (319, 319)


def test_len3_no_token_wanted_still_computes_the_prompt() -> None:
    """LEN-3: one prefill, nothing returned, reason length."""
    rig = CoreRig()
    rid = rig.submit([9, 8, 7, 6, 5], 0)
    rig.run()
    assert rig.outputs(rid) == [] and rig.streams[rid, 0].ending == "length"
    counters = rig.scheduler.snapshot()[1]
    assert (counters["prefill_tokens"], counters["decode_steps"]) == (5, 0)
