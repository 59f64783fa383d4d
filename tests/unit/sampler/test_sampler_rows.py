"""Edits of the logits, greedy rows, what is restored when a sequence comes back, bad rows and log-probabilities."""

import math

import numpy as np
import pytest
import torch
from sampler_reference import adjusted
from sampler_slots import set_slot

from quartet.wire.frames import SamplingParams
from worker_proc.sampler import Sampler, SamplingEntry

VOCAB = 256
EOS = [2, 9]


def make(max_slots: int = 32) -> Sampler:
    return Sampler(max_slots, VOCAB, 4096, EOS, "cpu")


def random_logits(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * 3


def sample(sampler: Sampler, logits: torch.Tensor, slot: int, position: int) -> int:
    return int(sampler.sample(logits[None], torch.tensor([slot]), torch.tensor([position])).ids[0])


def generate(sampler: Sampler, slot: int, length: int, steps: int) -> list[int]:
    """Let one slot run: the logits at a position depend on the position alone."""
    return [sample(sampler, random_logits(1, seed=p)[0], slot, p) for p in range(length, length + steps)]


PENALTIES = [
    {"repetition_penalty": 1.5},
    {"repetition_penalty": 0.7},
    {"presence_penalty": 1.1},
    {"frequency_penalty": 0.9},
    {"frequency_penalty": -0.5, "presence_penalty": -0.25},
    {
        "repetition_penalty": 1.3,
        "presence_penalty": 0.4,
        "frequency_penalty": 0.2,
        "logit_bias": ((3, 5.0), (200, -99.0)),
    },
]


@pytest.mark.parametrize("penalties", PENALTIES)
def test_penalties_against_the_reference(penalties):
    params = SamplingParams(temperature=0.0, **penalties)
    sampler = make()
    # A flat row with one small bump: the reference decides among tokens that were seen and tokens that were not.
    for case in range(40):
        generator = torch.Generator().manual_seed(case)
        ids = torch.randint(0, VOCAB, (60,), generator=generator).tolist()
        ids += [3, 3, 200]
        logits = torch.randn(VOCAB, generator=generator)
        set_slot(sampler, case % 8, params, ids, 40, 0)
        expected = adjusted(logits.tolist(), params, ids[:40], ids[40:], EOS)
        assert sample(sampler, logits, case % 8, len(ids)) == max(range(VOCAB), key=expected.__getitem__)


@pytest.mark.parametrize("penalties", PENALTIES)
def test_adjusted_logits_against_the_reference(penalties):
    params = SamplingParams(temperature=0.0, **penalties)
    sampler = make()
    ids = torch.randint(0, 50, (60,), generator=torch.Generator().manual_seed(1)).tolist()
    set_slot(sampler, 5, SamplingParams(temperature=0.0), [], 0, 0)
    set_slot(sampler, 4, params, ids, 20, 0)
    raw = random_logits(2)
    batch = sampler._batch(torch.tensor([4, 5]), torch.tensor([60, 0]))
    edited = sampler._adjusted(raw, batch)
    expected = torch.tensor(adjusted(raw[0].tolist(), params, ids[:20], ids[20:], EOS))
    torch.testing.assert_close(edited[0], expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(edited[1], raw[1])


def test_resumed_sequences_go_on_as_if_nothing_happened():
    params = SamplingParams(
        temperature=0.9, seed=5, repetition_penalty=1.3, frequency_penalty=0.7, presence_penalty=0.5, min_new_tokens=12
    )
    prompt = [1, 4, 4, 17]
    sampler = make()
    set_slot(sampler, 0, params, prompt, 4, 1)
    whole = generate(sampler, 0, 4, 30)
    for delivered in (0, 1, 11, 12, 25):
        resumed = make()
        set_slot(resumed, 7, SamplingParams(repetition_penalty=2.0), [5, 6, 7], 1, 0)
        set_slot(resumed, 7, params, prompt + whole[:delivered], 4, 1)
        assert generate(resumed, 7, 4 + delivered, 30 - delivered) == whole[delivered:]


def test_counts_make_a_greedy_row_leave_its_favourite():
    sampler = make()
    set_slot(sampler, 0, SamplingParams(temperature=0.0, frequency_penalty=1.0), [1], 1, 0)
    logits = torch.zeros(VOCAB)
    logits[[8, 9]] = torch.tensor([2.5, 1.0])
    assert [sample(sampler, logits, 0, p) for p in range(1, 6)] == [8, 8, 9, 8, 0]


def test_a_new_sequence_inherits_nothing():
    sampler = make()
    busy = SamplingParams(
        temperature=0.0, frequency_penalty=5.0, logit_bias=((30, 50.0),), min_new_tokens=50, stop_token_ids=(31,)
    )
    logits = torch.zeros(VOCAB)
    logits[31] = 1.0
    set_slot(sampler, 0, busy, [], 0, 0)
    assert sample(sampler, logits, 0, 0) == 30
    set_slot(sampler, 0, SamplingParams(temperature=0.0, logit_bias=((40, 0.5),)), [], 0, 0)
    assert sample(sampler, logits, 0, 0) == 31
    sampler.drop_slot(0)
    with pytest.raises(ValueError, match="slot 0"):
        sample(sampler, logits, 0, 0)
    set_slot(sampler, 0, busy, [], 0, 0)
    sampler.clear()
    set_slot(sampler, 1, SamplingParams(temperature=0.0, frequency_penalty=1.0), [], 0, 0)
    assert sample(sampler, logits, 1, 0) == 31


def test_min_new_tokens_hides_every_end():
    logits = torch.zeros(VOCAB)
    logits[[2, 9, 77, 5]] = torch.tensor([9.0, 8.0, 7.0, 1.0])
    params = SamplingParams(temperature=0.0, min_new_tokens=3, stop_token_ids=(77,))
    sampler = make()
    set_slot(sampler, 0, params, [1] * 10, 10, 0)
    assert [sample(sampler, logits, 0, position) for position in range(10, 15)] == [5, 5, 5, 2, 2]
    set_slot(sampler, 0, params, [1] * 12, 10, 0)
    assert [sample(sampler, logits, 0, position) for position in range(12, 14)] == [5, 2]
    ignoring = SamplingParams(temperature=0.0, min_new_tokens=3, stop_token_ids=(77,), ignore_eos=True)
    set_slot(sampler, 0, ignoring, [1] * 10, 10, 0)
    assert sample(sampler, logits, 0, 10) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("params", [{"temperature": 0.0}, {"temperature": 1.0, "top_k": 1}])
def test_greedy_takes_the_lowest_of_equals(dtype, params):
    sampler = make()
    for slot in range(3):
        set_slot(sampler, slot, SamplingParams(**params), [], 0, 0)
    logits = torch.zeros(3, VOCAB, dtype=dtype)
    logits[0, [130, 12, 255]] = 4.0
    logits[1, [255, 254]] = 4.0
    answer = sampler.sample(logits, torch.arange(3), torch.zeros(3, dtype=torch.int64))
    assert answer.ids.tolist() == [12, 254, 0]
    assert answer.finite.tolist() == [True] * 3
    assert answer.logprobs == []


def test_bad_rows_are_flagged_and_do_not_affect_others():
    sampler = make()
    logits = random_logits(6)
    for slot in range(6):
        params = SamplingParams(temperature=0.7 * (slot % 2), seed=slot, top_p=0.9, logprobs=1, frequency_penalty=0.1)
        set_slot(sampler, slot, params, [], 0, 0)
    good = sampler.sample(logits, torch.arange(6), torch.zeros(6, dtype=torch.int64))
    bad = logits.clone()
    bad[0, 3], bad[1, 250], bad[2, 0], bad[3], bad[4, 10] = math.nan, math.nan, math.inf, -math.inf, -math.inf
    for slot in range(6):
        params = SamplingParams(temperature=0.7 * (slot % 2), seed=slot, top_p=0.9, logprobs=1, frequency_penalty=0.1)
        set_slot(sampler, slot, params, [], 0, 0)
    answer = sampler.sample(bad, torch.arange(6), torch.zeros(6, dtype=torch.int64))
    assert answer.finite.tolist() == [False, False, False, False, True, True]
    assert answer.ids.tolist() == [0, 0, 0, 0, *good.ids.tolist()[4:]]
    assert [row for row, _ in answer.logprobs] == [4, 5]


def test_the_callers_logits_are_left_alone():
    sampler = make()
    busy = {"logit_bias": ((1, 3.0),), "repetition_penalty": 1.4, "min_new_tokens": 2, "top_p": 0.5, "logprobs": 2}
    for slot in range(2):
        set_slot(sampler, slot, SamplingParams(temperature=0.5, **busy), [3, 4], 1, 0)
    logits = random_logits(2)
    before = logits.clone()
    sampler.sample(logits, torch.arange(2), torch.tensor([2, 2]))
    assert torch.equal(logits, before)


def test_logprobs_are_of_the_raw_logits():
    sampler = make()
    bias = ((50, 100.0),)
    set_slot(sampler, 0, SamplingParams(temperature=0.0), [], 0, 0)
    set_slot(sampler, 1, SamplingParams(temperature=0.3, logit_bias=bias, logprobs=4, top_k=3), [], 0, 0)
    set_slot(sampler, 2, SamplingParams(temperature=0.0, logprobs=0), [], 0, 0)
    logits = random_logits(3)
    answer = sampler.sample(logits, torch.arange(3), torch.zeros(3, dtype=torch.int64))
    expected = logits.double().log_softmax(-1)
    (row_b, wide), (row_c, narrow) = answer.logprobs
    assert (row_b, row_c) == (1, 2)
    assert answer.ids[1] == 50
    assert wide.logprob == pytest.approx(float(expected[1, 50]), abs=1e-5)
    best = expected[1].topk(4)
    assert [token for token, _ in wide.top] == best.indices.tolist()
    assert [value for _, value in wide.top] == pytest.approx(best.values.tolist(), abs=1e-5)
    assert narrow.top == ()
    assert narrow.logprob == pytest.approx(float(expected[2].max()), abs=1e-5)


def test_many_slots_with_penalties_share_the_pool():
    sampler = make()
    params = SamplingParams(temperature=0.0, frequency_penalty=100.0)
    logits = torch.zeros(32, VOCAB)
    logits[:, :40] = torch.arange(40, 0, -1)
    for slot in range(32):
        set_slot(sampler, slot, params, list(range(slot)), 0, 0)
    answer = sampler.sample(logits, torch.arange(32), torch.arange(32))
    assert answer.ids.tolist() == list(range(32))


def test_refusals():
    sampler = make()
    params = SamplingParams(presence_penalty=1.0)
    for slot, ids, length in [(32, [], 0), (-1, [], 0), (0, [1], 2), (0, [VOCAB], 1), (0, [1] * 5000, 1)]:
        with pytest.raises(ValueError, match="slot"):
            set_slot(sampler, slot, params, ids, length, 0)
    with pytest.raises(ValueError, match="slot 3"):
        sample(sampler, torch.zeros(VOCAB), 3, 0)


MIXED = [
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=0.1, top_k=7, top_p=0.7, min_p=0.3, seed=(1 << 64) - 1),
    SamplingParams(repetition_penalty=1.1, presence_penalty=-0.3, frequency_penalty=1 / 3, seed=5),
    SamplingParams(temperature=1.3, logit_bias=((3, 1.5), (4, -2.0)), min_new_tokens=4, seed=1 << 40),
    SamplingParams(temperature=0.0, logprobs=2),
]


def entering(slot: int, params: SamplingParams) -> SamplingEntry:
    return SamplingEntry(slot, params, np.arange(slot + 3, dtype=np.int64), 2, slot)


def test_slots_set_together_stand_as_if_set_one_by_one():
    together, apart = make(), make()
    wanted = [entering(slot, params) for slot, params in zip((9, 0, 31, 4, 5), MIXED, strict=True)]
    with torch.inference_mode():
        together.set_slots(wanted)
    for one in wanted:
        set_slot(apart, one.slot, one.params, one.ids.tolist(), one.prompt_length, one.choice)
    for ours, theirs in [
        (together.table.ints, apart.table.ints),
        (together.table.floats, apart.table.floats),
        (together.table.bias.values, apart.table.bias.values),
        (together.table.mask.ids, apart.table.mask.ids),
    ]:
        assert torch.equal(ours, theirs)
    assert together.table.slot_params == apart.table.slot_params
    assert together.unfused_rows(np.arange(32)).tolist() == apart.unfused_rows(np.arange(32)).tolist()
    together.set_slots([])


def test_numbers_reach_the_tables_exactly():
    sampler = make()
    sampler.set_slots([entering(2, MIXED[2]), entering(1, MIXED[1])])
    resolved = sampler.table.slot_params[1]
    assert resolved is not None
    assert sampler.table.floats[1].tolist() == [0.1, 0.7, 0.3, 1.0, 0.0, 0.0]
    assert sampler.table.floats[2].tolist() == [1.0, 1.0, 0.0, 1.1, -0.3, 1 / 3]
    assert sampler.table.ints[1].tolist() == [resolved.key & 0xFFFFFFFF, resolved.key >> 32, 7, 2, 0, 0]
    assert sampler.table.ints[3].tolist() == [0, 0, 0, 0, 1, 0]


def test_one_bad_entry_leaves_every_slot_as_it_was():
    sampler = make()
    with pytest.raises(ValueError, match="slot 32"):
        sampler.set_slots([entering(3, MIXED[2]), entering(32, MIXED[0])])
    assert sampler.table.slot_params[3] is None and not sampler.table.ints[:, 5].any()


def test_inference_mode_may_come_and_go():
    sampler = make()
    params = SamplingParams(temperature=0.0, presence_penalty=1.0, logit_bias=((1, 1.0),))
    with torch.inference_mode():
        set_slot(sampler, 0, params, [1], 1, 0)
        sample(sampler, torch.zeros(VOCAB), 0, 1)
        sampler.clear()
        set_slot(sampler, 0, params, [1], 1, 0)
    assert sample(sampler, torch.zeros(VOCAB), 0, 1) == 1
