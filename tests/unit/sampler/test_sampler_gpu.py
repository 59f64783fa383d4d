"""The sampler on a device: the same ids as on the CPU, and no wait for the device on the way."""

import pytest
import torch
from sampler_slots import set_slot

from quartet.wire.frames import SamplingParams
from worker_proc.sampler import Sampler, draw, draw_triton

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore:Synchronization debug mode")]
VOCAB = 49152
MIXED = [
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=0.8, seed=1),
    SamplingParams(temperature=1.2, top_k=50, seed=2),
    SamplingParams(temperature=0.7, top_p=0.9, seed=3, repetition_penalty=1.2, min_new_tokens=30),
    SamplingParams(min_p=0.05, seed=4, logit_bias=((7, 4.0), (9, -3.0)), frequency_penalty=0.3),
    SamplingParams(temperature=0.0, presence_penalty=1.0),
    SamplingParams(temperature=1.0, top_k=400, top_p=0.99, min_p=0.001, seed=5),
]


def random_logits(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * 3


def fill(sampler: Sampler) -> Sampler:
    for slot, params in enumerate(MIXED):
        set_slot(sampler, slot, params, list(range(40)), 20, 0)
    return sampler


@pytest.mark.parametrize("slots_on", ["cpu", "cuda"])
def test_equal_to_the_cpu_without_waiting(slots_on):
    ours, theirs = fill(Sampler(16, VOCAB, 4096, [2], "cuda")), fill(Sampler(16, VOCAB, 4096, [2], "cpu"))
    slots = torch.arange(len(MIXED))
    equal = total = 0
    for step in range(20):
        logits, positions = random_logits(len(MIXED), step), torch.full((len(MIXED),), 40 + step)
        inputs = logits.cuda(), slots.to(slots_on), positions.to(slots_on)
        if slots_on == "cpu":
            inputs = inputs[0], inputs[1].pin_memory(), inputs[2].pin_memory()
        torch.cuda.set_sync_debug_mode("error")
        try:
            found = ours.sample(*inputs)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        expected = theirs.sample(logits, slots, positions)
        equal += int((found.ids.cpu() == expected.ids).sum())
        total += len(MIXED)
        for slot in range(len(MIXED)):
            set_slot(theirs, slot, MIXED[slot], list(range(40)), 20, 0)
            set_slot(ours, slot, MIXED[slot], list(range(40)), 20, 0)
    # exp and log differ by an ulp between the two: a near-tie may fall the other way.
    assert equal >= total - 1


def test_rows_do_not_see_each_other():
    logits = random_logits(len(MIXED)).cuda().bfloat16()
    positions = torch.full((len(MIXED),), 40)
    together = fill(Sampler(16, VOCAB, 4096, [2], "cuda")).sample(logits, torch.arange(len(MIXED)), positions)
    for row in range(len(MIXED)):
        alone = fill(Sampler(16, VOCAB, 4096, [2], "cuda"))
        found = alone.sample(logits[row : row + 1], torch.tensor([row]), positions[:1])
        assert found.ids[0] == together.ids[row]


def test_logprobs_and_bad_rows():
    sampler = fill(Sampler(16, VOCAB, 4096, [2], "cuda"))
    set_slot(sampler, 0, SamplingParams(temperature=0.0, logprobs=3), [1], 1, 0)
    logits = random_logits(2).cuda()
    logits[1, 5] = float("nan")
    for device in ("cpu", "cuda"):
        slots, positions = torch.arange(2, device=device), torch.ones(2, dtype=torch.int64, device=device)
        found = sampler.sample(logits, slots, positions)
        assert found.finite.tolist() == [True, False]
        ((row, found),) = found.logprobs
        assert row == 0
        assert found.logprob == pytest.approx(float(logits[0].double().log_softmax(0).max()), abs=1e-5)


def test_kernels_equal_their_torch_versions():
    generator = torch.Generator(device="cuda").manual_seed(0)
    weights = (torch.randn(8, 151936, generator=generator, device="cuda") * 3).exp()
    weights /= weights.amax(dim=1, keepdim=True)
    low, high = torch.arange(8, device="cuda") * 99991, torch.arange(8, device="cuda") + 2**31
    positions = torch.arange(8, device="cuda") * 1000
    ours = draw_triton.gumbel_argmax(weights, low, high, positions)
    assert int((ours != draw.gumbel_argmax(weights, low, high, positions)).sum()) <= 1
    top_p = torch.linspace(0.1, 1.0, 8, dtype=torch.float64, device="cuda")
    assert torch.equal(draw_triton.top_p_thresholds(weights, top_p), draw.top_p_thresholds(weights, top_p))
