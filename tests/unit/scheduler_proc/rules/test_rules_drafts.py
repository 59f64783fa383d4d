"""Drafts from a request's own text (STEP-17 to STEP-20), on a worker that checks every position it reads."""

import os
import random
from collections.abc import Sequence

import pytest

from quartet.wire.frames import Abort, Grammar, SamplingParams, Stopped, unpack_ids
from quartet.wire.ids import Handle
from scheduler_proc.core.speculation import can_have_drafts
from scheduler_proc.core.text_match import GRAM, MOST_PROMPT_TOKENS, TextMatch
from tests.support.core_rig import EOS, CoreRig

CASES = int(os.environ.get("QUARTET_EXAMPLES", "0")) or 60


def repeating(ids: Sequence[int], vocab_size: int) -> int:
    """A text that repeats itself for a while, then goes on otherwise: the next id follows from the last one and from
    the length in periods of 41 tokens."""
    return 1 + (ids[-1] * 31 + 7 * (len(ids) // 41)) % 11


def never(ids: Sequence[int], vocab_size: int) -> int:
    """A text in which no three tokens come twice."""
    return 1 + (len(ids) * len(ids) // 3 + len(ids)) % (vocab_size - 1)


def greedy(count: int, **fields: object) -> SamplingParams:
    return SamplingParams(max_new_tokens=count, temperature=0.0, **fields)  # type: ignore[arg-type]


def expected(prompt: list[int], count: int) -> list[int]:
    ids = list(prompt)
    for _ in range(count):
        ids.append(repeating(ids, 97))
        if ids[-1] == EOS:
            break
    return ids[len(prompt) :]


def counters(rig: CoreRig) -> dict[str, float]:
    return rig.scheduler.snapshot()[1]


def test_step18_the_output_is_what_it_would_be_without_drafts() -> None:
    """STEP-18: in fewer steps; what a draft got wrong is computed again."""
    steps = {}
    for most in (0, 6):
        rig = CoreRig(oracle=repeating, speculative_tokens=most)
        rids = [rig.submit([5, 6, 7, 8, at], params=greedy(150)) for at in range(3)]
        rig.run()
        assert [rig.outputs(rid) for rid in rids] == [expected([5, 6, 7, 8, at], 150) for at in range(3)]
        steps[most] = counters(rig)["decode_steps"]
        assert rig.scheduler.is_idle()
    found = counters(rig)
    assert 0 < found["accepted_tokens"] < found["drafted_tokens"]
    assert steps[6] < 0.6 * steps[0]


def test_step19_a_text_that_never_repeats_gets_no_drafts_and_two_steps_in_flight() -> None:
    """STEP-19: whether drafts would hold is seen without making any."""
    rig = CoreRig(oracle=never, speculative_tokens=6)
    rig.submit([5, 6, 7], params=greedy(80))
    while rig.step():
        assert len(rig.steps) in (0, 2) or counters(rig)["output_tokens"] > 76
    assert counters(rig)["drafted_tokens"] == 0 and counters(rig)["decode_steps"] == 79


@pytest.mark.parametrize(
    "own",
    [
        {"presence_penalty": 0.5},
        {"frequency_penalty": 0.5},
        {"repetition_penalty": 1.2},
        {"logprobs": 2},
    ],
)
def test_step17_rows_that_depend_on_more_than_their_position_get_no_drafts(own: dict[str, object]) -> None:
    """STEP-17: penalties and grammars follow what was sampled before; log-probabilities are of each sampled row."""
    rig = CoreRig(oracle=repeating, speculative_tokens=6)
    rid = rig.submit([5, 6, 7], params=greedy(60, **own))
    plain = rig.submit([5, 6, 7, 8], params=greedy(150))
    drafted = set()
    rig.watch(lambda frame: drafted.update(_drafted_slots(frame)))
    rig.run()
    assert rig.outputs(rid) == expected([5, 6, 7], 60) and rig.outputs(plain) == expected([5, 6, 7, 8], 150)
    assert drafted <= {1}


def test_step17_a_grammar_is_another_such_thing() -> None:
    """STEP-17: its state follows what was sampled before."""
    assert can_have_drafts(greedy(9)) and not can_have_drafts(greedy(9, grammar=Grammar("llguidance", "x")))


def _drafted_slots(frame: object) -> list[int]:
    slots = unpack_ids(getattr(frame, "rows", b""))[::3]
    return [slot for slot in slots if slots.count(slot) > 1]


def test_step20_drafts_take_no_cached_prefix_and_no_last_page() -> None:
    """STEP-20: with a pool that the request itself fills, it decodes to its end without a retraction."""
    rig = CoreRig(pages=18, oracle=repeating, speculative_tokens=8)
    rid = rig.submit([5, 6, 7], params=greedy(60))
    rig.run()
    assert rig.outputs(rid) == expected([5, 6, 7], 60) and counters(rig)["retractions"] == 0


def test_step18_a_stop_string_or_an_abort_ends_a_request_amid_its_drafts() -> None:
    """STEP-18: whatever is back afterwards is dropped, and every page is free again."""
    for ends in ("stop", "abort"):
        rig = CoreRig(oracle=repeating, speculative_tokens=6)
        rid = rig.submit([5, 6, 7, 8], params=greedy(150))
        while not any(_drafted_slots(step) for step in rig.steps):
            rig.step()
        stream = rig.streams[rid, 0]
        if ends == "stop":
            (handle,) = rig.handles
            rig.send(Stopped(Handle(handle), rid, 0, 0, len(stream.outputs) - 1))
        else:
            rig.send(Abort(rid))
        rig.run()
        assert rig.scheduler.is_idle()


def test_a_match_follows_the_latest_place_and_says_how_often_it_was_right() -> None:
    match = TextMatch(b"".join(token.to_bytes(4, "little") for token in (1, 2, 3, 4, 1, 2, 3, 9, 8)))
    assert match.draft(5) == []
    match.follow([1, 2, 3])
    assert match.draft(5) == [9, 8, 1, 2, 3] and match.rate == 0.0
    match.follow([1, 2, 3, 9, 8])
    assert match.draft(2) == [1, 2] and match.rate == pytest.approx(1 - (7 / 8) ** 2)
    match.follow([1, 2, 3, 9, 8, 5])
    assert match.draft(2) == [] and match.rate == pytest.approx((1 - (7 / 8) ** 2) * 7 / 8)


def test_only_the_end_of_a_long_prompt_is_indexed() -> None:
    prompt = list(range(GRAM)) + [99] * MOST_PROMPT_TOKENS
    match = TextMatch(b"".join(token.to_bytes(4, "little") for token in prompt))
    match.follow(list(range(GRAM)))
    assert match.draft(1) == []


@pytest.mark.parametrize("seed", range(CASES))
def test_step18_random_traffic_with_deaths_gives_the_same_bytes(seed: int) -> None:
    """STEP-18: arrivals, lost workers, failed steps, aborts, chunks, shared prefixes and a pool that runs out."""
    generator = random.Random(seed)
    config = {
        "speculative_tokens": generator.choice([1, 3, 8, 32]),
        "step_order": generator.choice(["prefill_first", "decode_first"]),
        "enable_mixed_chunk": generator.random() < 0.5,
        "stream_interval": generator.choice([1, 1, 4]),
    }
    rig = CoreRig(pages=generator.choice([24, 40, 80]), slots=generator.choice([1, 3, 8]), oracle=repeating, **config)
    wanted = {}
    for _ in range(generator.randint(40, 90)):
        match generator.random():
            case draw if draw < 0.12 and len(wanted) < 10:
                prompt = [generator.randint(1, 11) for _ in range(generator.choice([1, 5, 17]))]
                count = generator.choice([1, 9, 40])
                wanted[rig.submit(prompt, params=greedy(count))] = expected(prompt, count)
            case draw if draw < 0.15:
                rig.worker_lost()
                rig.worker_up()
            case draw if draw < 0.17 and rig.steps:
                rig.fail_step()
            case draw if draw < 0.19 and wanted:
                rid = generator.choice(list(wanted))
                rig.send(Abort(rid))
                rig.streams[rid, 0].is_over = True
                del wanted[rid]
            case _:
                rig.step()
    rig.run()
    found = {rid: rig.outputs(rid) for rid in wanted if rig.streams[rid, 0].ending == "length"}
    assert found == {rid: wanted[rid] for rid in found}
    assert rig.scheduler.is_idle()
