"""The fused sampler against the full sampler's noise: greedy, drawn, ties, bad rows, padding rows."""

import kernel_cases as cases
import pytest
import torch
from kernel_cases import BF16, FP32, integers, normal

from kernels.fused_sample import fused_sample, fused_sample_reference
from worker_proc.sampler.philox import exponentials

SLOTS = 7
COLUMNS = {"temperature": 1, "key_low": 0, "key_high": 2, "is_greedy": 3}
DEVICE = integers([0]).device


def tables(seed):
    generator = torch.Generator().manual_seed(seed)
    floats = torch.rand((SLOTS, 3), generator=generator, dtype=torch.float64) + 0.3
    ints = torch.randint(0, 1 << 32, (SLOTS, 5), generator=generator)
    ints[:, 3] = torch.tensor([0, 1, 0, 0, 1, 0, 0])
    return floats.to(DEVICE), ints.to(DEVICE)


def sampled(logits, slots, positions, seed=1, sequence=6):
    floats, ints = tables(seed)
    last_token = torch.full((SLOTS + 1,), 77, device=DEVICE)
    output = torch.full((4, len(slots) + 2), 55, dtype=torch.int32, device=DEVICE)
    fused_sample(logits, slots, positions, floats, ints, last_token, output, integers([sequence]), **COLUMNS)
    rows = slots.long().clamp(max=SLOTS - 1)
    noise = exponentials(ints[rows, 0].cpu(), ints[rows, 2].cpu(), positions.cpu().long(), logits.shape[1])
    expected = fused_sample_reference(logits, rows, positions, floats[:, 1], ints[:, 3], noise.to(DEVICE))
    return output.cpu(), last_token.cpu(), expected.cpu()


@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize("vocab", [96, 4097, 9000])
def test_ids_are_those_of_the_same_noise(vocab, dtype):
    slots, positions = integers([3, 1, 0, 6, 4]), integers([5, 900, 12, 1, 3])
    output, last_token, expected = sampled(normal(5, vocab, dtype=dtype, seed=vocab) * 3, slots, positions)
    assert output[2, :5].tolist() == expected.tolist()
    assert last_token[slots.long().cpu()].tolist() == expected.tolist()
    assert (output[[0, 1, 3]] == 55).all() and (output[2, 5:] == 55).all() and last_token[2] == 77


def test_the_lowest_id_wins_among_equals_across_chunks():
    logits = torch.zeros((2, 9000), device=DEVICE)
    logits[0, [8000, 4500, 4400]] = 3.0
    output, _, _ = sampled(logits, integers([1, 4]), integers([2, 2]))
    assert output[2, :2].tolist() == [4400, 0]


def test_bad_rows_are_written_as_minus_one_and_padding_is_left_alone():
    logits = normal(6, 5000, dtype=FP32, seed=3)
    logits[0, 4999] = float("nan")
    logits[1, 3] = float("inf")
    logits[2] = float("-inf")
    logits[3, :4900] = float("-inf")
    output, last_token, expected = sampled(logits, integers([0, 1, 2, 3, 7, 5]), integers([2, 2, 2, 2, 0, 2]))
    assert output[2, :4].tolist() == [-1, -1, -1, int(expected[3])] and expected[3] >= 4900
    assert last_token[:3].tolist() == [0, 0, 0]
    assert output[2, 4] == 55 and last_token[7] == 77


@pytest.mark.gpu
@pytest.mark.skipif(not cases.ON_GPU, reason="two thousand programs take minutes without a GPU")
def test_draws_follow_the_distribution():
    """Chi-square over 5 tokens and 2,000 positions; the threshold is that of one in a million."""
    weights = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05])
    rows = 2000
    logits = weights.log().repeat(rows, 1).to(DEVICE)
    floats = torch.ones((1, 3), dtype=torch.float64, device=DEVICE)
    ints = torch.tensor([[11, 0, 5, 0, 0]], device=DEVICE)
    output = torch.zeros((1, rows), dtype=torch.int32, device=DEVICE)
    slots, positions = integers([0] * rows), integers(range(1, rows + 1))
    fused_sample(logits, slots, positions, floats, ints, torch.zeros(1, dtype=torch.int64, device=DEVICE), output,
                integers([0]), **COLUMNS)  # fmt: skip
    counts = torch.bincount(output[0].cpu(), minlength=5).double()
    chi_square = ((counts - rows * weights) ** 2 / (rows * weights)).sum()
    assert chi_square < 33.4
