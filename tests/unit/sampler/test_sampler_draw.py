"""What is drawn: its support, its distribution, and that nothing but (logits, seed, choice, position) decides it."""

import math

import numpy as np
import pytest
import torch
from sampler_reference import probabilities
from sampler_slots import set_slot

from quartet.wire.frames import SamplingParams
from worker_proc.sampler import Sampler, SamplingEntry
from worker_proc.sampler.draw import draw_rows
from worker_proc.sampler.draw_cpu import _candidates
from worker_proc.sampler.table import SamplingTable

VOCAB = 512
FILTERS = [
    {},
    {"top_k": 5},
    {"top_p": 0.7},
    {"min_p": 0.1},
    {"top_k": 40, "top_p": 0.9},
    {"top_k": 300, "top_p": 0.999, "min_p": 0.001},
    {"top_p": 1e-6},
    {"top_k": VOCAB - 1},
    {"top_k": 10 * VOCAB},
    {"top_p": 0.8, "min_p": 0.02, "temperature": 0.3},
    {"temperature": 5.0, "top_p": 0.99},
    {"temperature": 1e-3},
]


def make(max_slots: int = 16, vocab_size: int = VOCAB) -> Sampler:
    return Sampler(max_slots, vocab_size, 4096, [2], "cpu")


def random_logits(rows: int, vocab_size: int = VOCAB, seed: int = 0, scale: float = 3.0) -> torch.Tensor:
    return torch.randn(rows, vocab_size, generator=torch.Generator().manual_seed(seed)) * scale


def draw(sampler: Sampler, logits: torch.Tensor, slots: list[int], positions: list[int]) -> list[int]:
    return sampler.sample(logits, torch.tensor(slots), torch.tensor(positions)).ids.tolist()


def draw_both_ways(logits: torch.Tensor, params: SamplingParams, positions: range) -> tuple[list[int], list[int]]:
    """Draw at many positions from one row of logits: as the CPU does, and as a device does."""
    sampler = make(1, logits.shape[0])
    set_slot(sampler, 0, params, [], 0, 0)
    rows, slots = logits.expand(len(positions), -1), torch.zeros(len(positions), dtype=torch.int64)
    narrowed = sampler.sample(rows, slots, torch.tensor(positions)).ids.tolist()
    return narrowed, draw_as_device(logits, params, positions)


def entry(params: SamplingParams) -> SamplingEntry:
    return SamplingEntry(0, params, np.empty(0, dtype=np.int64), 0, 0)


def draw_as_device(logits: torch.Tensor, params: SamplingParams, positions: range) -> list[int]:
    table = SamplingTable(1, logits.shape[0], (2,), torch.device("cpu"))
    (resolved,) = table.set([entry(params)], [0])
    rows, slots = logits.expand(len(positions), -1), torch.zeros(len(positions), dtype=torch.int64)
    device_positions = torch.tensor(positions)
    return draw_rows(rows, rows.amax(1), table, slots, device_positions, resolved.top_k, resolved.top_p < 1.0).tolist()


@pytest.mark.parametrize("filters", FILTERS)
@pytest.mark.parametrize("seed", range(5))
def test_support_is_that_of_the_sorted_reference(filters, seed):
    params = SamplingParams(seed=9, **filters)
    logits = random_logits(1, seed=seed)[0]
    expected = probabilities(logits.tolist(), params)
    support = {token for token, p in enumerate(expected) if p > 0}
    (resolved,) = SamplingTable(1, VOCAB, (), torch.device("cpu")).set([entry(params)], [0])
    ids, _ = _candidates((logits - logits.max()) / resolved.temperature, resolved)
    # What cannot win is left out; the reference has it with next to no probability.
    candidates = set(range(VOCAB)) if ids is None else set(ids.tolist())
    assert candidates <= support or ids is None
    assert all(expected[token] < 1e-11 for token in support - candidates)
    drawn, _ = draw_both_ways(logits, params, range(200))
    assert {token for token, p in enumerate(expected) if p > 0.06} <= set(drawn) <= candidates


@pytest.mark.parametrize("filters", FILTERS)
@pytest.mark.parametrize("scale", [0.5, 3.0, 12.0])
def test_cpu_and_device_paths_agree(filters, scale):
    narrowed, whole = draw_both_ways(
        random_logits(1, scale=scale, seed=4)[0], SamplingParams(seed=1, **filters), range(60)
    )
    assert narrowed == whole


def test_ties_at_the_edge_are_all_kept():
    logits = torch.tensor([3.0, 2.0, 2.0, 2.0, 1.0, 0.0, 0.0, 0.0])
    for filters in ({"top_k": 2}, {"top_p": 0.5}):
        narrowed, whole = draw_both_ways(logits, SamplingParams(seed=3, **filters), range(300))
        assert set(narrowed) == {0, 1, 2, 3}
        assert narrowed == whole


@pytest.mark.parametrize("filters", [{}, {"temperature": 0.5}, {"top_k": 4}, {"top_p": 0.8}, {"min_p": 0.2}])
def test_frequencies_pass_chi_square(filters):
    params = SamplingParams(seed=2024, **filters)
    logits = torch.tensor([1.0, 0.2, -0.3, 0.9, 2.0, -1.0, 0.0, 1.4])
    expected = probabilities(logits.tolist(), params)
    drawn = draw_as_device(logits, params, range(4000))
    kept = [token for token, p in enumerate(expected) if p > 0]
    assert set(drawn) <= set(kept)
    statistic = sum((drawn.count(t) - 4000 * expected[t]) ** 2 / (4000 * expected[t]) for t in kept)
    freedom = len(kept) - 1
    # Wilson-Hilferty: the 99.9 % point of chi-square.
    assert statistic < freedom * (1 - 2 / (9 * freedom) + 3.09 * math.sqrt(2 / (9 * freedom))) ** 3


def test_other_rows_and_slots_do_not_matter():
    sampler = make()
    mixed = [
        SamplingParams(temperature=0.8, seed=1),
        SamplingParams(temperature=0.0),
        SamplingParams(temperature=1.2, top_k=20, seed=3),
        SamplingParams(top_p=0.9, seed=4, repetition_penalty=1.2),
        SamplingParams(min_p=0.05, seed=5, logit_bias=((7, 4.0),), logprobs=3),
        SamplingParams(temperature=0.0, presence_penalty=1.0),
    ]
    logits, ids = random_logits(len(mixed)), list(range(100, 120))
    for slot, params in enumerate(mixed):
        set_slot(sampler, slot, params, ids, 10, 0)
    positions = [20 + slot for slot in range(len(mixed))]
    together = draw(sampler, logits, list(range(len(mixed))), positions)
    backwards = make()
    for slot, params in enumerate(mixed):
        set_slot(backwards, 15 - slot, params, ids, 10, 0)
    order = list(reversed(range(len(mixed))))
    reordered = draw(backwards, logits[order], [15 - row for row in order], [positions[row] for row in order])
    assert reordered == [together[row] for row in order]
    for row, params in enumerate(mixed):
        alone = make()
        set_slot(alone, 3, params, ids, 10, 0)
        assert draw(alone, logits[row : row + 1], [3], [positions[row]]) == [together[row]]


def test_seed_choice_and_position_matter_and_repeat():
    logits = random_logits(1, scale=0.1).expand(8, -1)

    def run(seed: int, choice: int, start: int = 0) -> list[int]:
        sampler = make()
        set_slot(sampler, 0, SamplingParams(seed=seed), [], 0, choice)
        return draw(sampler, logits, [0] * 8, list(range(start, start + 8)))

    assert run(7, 0) == run(7, 0)
    assert run(7, 0)[3:] == run(7, 0, start=3)[:5]
    assert len({tuple(run(seed, choice)) for seed in (7, 8, -7) for choice in (0, 1)}) == 6


@pytest.mark.parametrize("vocab_size", [1, 3, 130, 640])
def test_odd_vocabularies(vocab_size):
    logits = random_logits(1, vocab_size)[0]
    narrowed, whole = draw_both_ways(logits, SamplingParams(seed=6, top_p=0.95), range(20))
    assert narrowed == whole
    assert all(0 <= token < vocab_size for token in narrowed)


def test_a_wide_nucleus_is_exact():
    logits = random_logits(1, 16384, scale=0.2)[0]
    for top_p in (0.01, 0.2, 0.9):
        narrowed, whole = draw_both_ways(logits, SamplingParams(seed=6, top_p=top_p), range(6))
        assert narrowed == whole
