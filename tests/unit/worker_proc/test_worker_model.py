"""The runner on tiny random models, against a dense float64 forward and against transformers' recorded greedy ids."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from dense_decoder import dense_greedy, dense_logits
from step_feeder import GREEDY, SCHEDULER, StepFeeder
from tiny_models import TINY, VARIANTS, MakeRunner, make_weights, resolved

from quartet.wire.config import Config, ModelConfig, SchedulerConfig, WorkerConfig
from quartet.wire.frames import Chunk, SamplingParams, pack_ids, unpack_ids
from worker_proc.contract import StepError
from worker_proc.loading import load_runner
from worker_proc.weights.fp8 import coded

GOLDEN = Path(__file__).parents[2] / "golden" / "models"
ORACLES = sorted(path for path in GOLDEN.glob("*/oracle.json") if path.parent.name != "phi3_longrope")


def prompt(length: int, seed: int = 0) -> list[int]:
    return torch.randint(3, 96, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.mark.parametrize("name", VARIANTS)
def test_greedy_output_equals_a_dense_forward(name: str, make_runner: MakeRunner) -> None:
    config = VARIANTS[name]
    weights = make_weights(config)
    feeder = StepFeeder(make_runner(config, weights))
    for slot, length in enumerate((1, 15, 16, 17, 70)):
        ids = prompt(length, seed=length)
        assert feeder.generate(slot, ids, 6) == dense_greedy(config, weights, ids, 6)


def test_keys_and_values_in_fp8_are_those_rounded_once(make_runner: MakeRunner) -> None:
    weights = make_weights(TINY)
    runner = make_runner(TINY, weights, "fp8_e4m3")
    feeder = StepFeeder(runner)
    rounded = {**TINY, "kv_cache": "fp8_e4m3"}
    for slot, length in enumerate((1, 15, 16, 17, 70)):
        ids = prompt(length, seed=length)
        assert feeder.generate(slot, ids, 6) == dense_greedy(rounded, weights, ids, 6)
    assert {kv.dtype for kv in runner._caches if isinstance(kv, torch.Tensor)} == {torch.float8_e4m3fn}


def test_numbers_beyond_the_largest_of_fp8_become_that() -> None:
    numbers = torch.tensor([1000.0, -449.0, 448.0, 0.3])
    assert coded(numbers).view(torch.float8_e4m3fn).float().tolist() == [448.0, -448.0, 448.0, 0.3125]


def test_chunks_mixed_with_decode_rows_change_nothing(make_runner: MakeRunner) -> None:
    weights = make_weights(TINY)
    feeder = StepFeeder(make_runner(TINY, weights))
    short, long = prompt(5, 1), prompt(60, 2)
    feeder.step([feeder.enter(0, short, 20)], [Chunk(0, 5, True)])
    feeder.step([feeder.enter(1, long, 20)], [Chunk(1, 33, False)])
    feeder.step(chunks=[Chunk(1, 1, False)])
    feeder.step(chunks=[Chunk(1, 26, True)])
    for _ in range(5):
        feeder.step()
    assert feeder.outputs[0] == dense_greedy(TINY, weights, short, 9)
    assert feeder.outputs[1] == dense_greedy(TINY, weights, long, 6)


def test_a_cached_prefix_is_read_from_another_sequences_pages(make_runner: MakeRunner) -> None:
    weights = make_weights(TINY)
    feeder = StepFeeder(make_runner(TINY, weights))
    first, second = prompt(40, 3), prompt(32, 3) + prompt(7, 4)
    assert first[:32] == second[:32]
    enter = feeder.enter(0, first, 10)
    feeder.step([enter], [Chunk(0, 40, True)])
    shared = unpack_ids(enter.pages)[:2]
    feeder.step([feeder.enter(1, second, 10, cached=(32, shared))], [Chunk(1, 7, True)])
    feeder.step()
    assert feeder.outputs[1] == dense_greedy(TINY, weights, second, 2)
    assert feeder.outputs[0] == dense_greedy(TINY, weights, first, 3)


def test_rows_of_very_different_length_are_grouped_and_keep_their_order(make_runner: MakeRunner) -> None:
    weights = make_weights(TINY)
    feeder = StepFeeder(make_runner(TINY, weights))
    prompts = {slot: prompt(length, slot) for slot, length in enumerate((200, 3, 190, 4, 5, 90, 7, 6))}
    feeder.step(
        [feeder.enter(slot, ids, 3) for slot, ids in prompts.items()],
        [Chunk(slot, len(ids), True) for slot, ids in prompts.items()],
    )
    feeder.step()
    for slot, ids in prompts.items():
        assert feeder.outputs[slot] == dense_greedy(TINY, weights, ids, 2)


def test_a_resumed_sequence_goes_on_as_if_never_interrupted(make_runner: MakeRunner) -> None:
    params = SamplingParams(temperature=1.0, seed=11, presence_penalty=0.5, repetition_penalty=1.2, top_p=0.9)
    feeder = StepFeeder(make_runner(TINY))
    ids = prompt(9, 5)
    whole = feeder.generate(0, ids, 12, params)
    assert len(set(whole)) > 3
    for split in (1, 7):
        resumed = feeder.enter(split, ids + whole[:split], 12, params, prompt_length=len(ids))
        feeder.step([resumed], [Chunk(split, len(ids) + split, True)])
        while len(feeder.outputs[split]) < 12 - split:
            feeder.step()
        feeder.step(release=[split], decode=False)
        assert whole[:split] + feeder.outputs[split] == whole


@pytest.mark.parametrize("resumed", [0, 1, 2])
def test_the_sampler_gets_the_position_of_the_sampled_token(resumed: int, make_runner: MakeRunner) -> None:
    """The end token has nearly all the probability, but is masked until three output tokens exist."""
    params = SamplingParams(temperature=0.0, min_new_tokens=3, logit_bias=((2, 100.0),))
    feeder = StepFeeder(make_runner(TINY))
    ids = prompt(6, 11)
    known = ids + prompt(resumed, 12)
    feeder.step([feeder.enter(0, known, 8, params, prompt_length=6)], [Chunk(0, len(known), True)])
    for _ in range(4):
        feeder.step()
    assert [token == 2 for token in feeder.outputs[0]] == [index + resumed >= 3 for index in range(5)]


def test_rows_are_the_same_alone_and_in_a_batch_bit_for_bit(make_runner: MakeRunner) -> None:
    """In fp32 a decode row must not depend on the other rows of its batch: this makes a replay exact."""
    params = SamplingParams(temperature=0.0, logprobs=3)
    runner = make_runner(TINY)
    feeder = StepFeeder(runner)

    def logprobs_of_slot_0(others: int) -> list[Any]:
        slots = range(others + 1)
        for slot in slots:
            ids = prompt(20 + slot, slot)
            feeder.step([feeder.enter(slot, ids, 6, params)], [Chunk(slot, len(ids), True)], decode=False)
        found = []
        for _ in range(4):
            result = feeder.step()
            row = unpack_ids(result.slots).index(0)
            found.append(dict(result.logprobs)[row])
        feeder.step(release=list(slots), decode=False)
        return found

    alone = logprobs_of_slot_0(0)
    assert len(alone) == 4
    assert logprobs_of_slot_0(1) == alone
    assert logprobs_of_slot_0(6) == alone


def test_bfloat16_stays_near_float32(make_runner: MakeRunner) -> None:
    weights = make_weights(TINY)
    ids = prompt(30, 6)
    exact = torch.log_softmax(dense_logits(TINY, weights, ids)[-1], -1)
    feeder = StepFeeder(make_runner(TINY, weights, dtype="bfloat16"))
    params = SamplingParams(temperature=0.0, logprobs=5)
    result = feeder.step([feeder.enter(0, ids, 4, params)], [Chunk(0, 30, True)])
    for token, logprob in result.logprobs[0][1].top:
        assert logprob == pytest.approx(exact[token].item(), abs=0.3)


def test_dummy_weights_are_the_same_every_time(make_runner: MakeRunner) -> None:
    ids = prompt(10)
    outputs = [StepFeeder(make_runner(TINY, load_format="dummy")).generate(0, ids, 5) for _ in range(2)]
    assert outputs[0] == outputs[1]


def test_logits_that_are_not_finite_are_reported(make_runner: MakeRunner) -> None:
    weights = make_weights(TINY)
    weights["model.embed_tokens.weight"][50] = float("nan")
    feeder = StepFeeder(make_runner(TINY, weights))
    good, bad = prompt(6, 7), [50, 4]
    good = [token for token in good if token != 50]
    result = feeder.step(
        [feeder.enter(0, good, 4), feeder.enter(1, bad, 4)], [Chunk(0, len(good), True), Chunk(1, 2, True)]
    )
    assert result.bad_rows == [1]
    assert feeder.outputs[0] == dense_greedy(TINY, weights, good, 1)


def test_a_failed_step_does_not_affect_other_sequences(
    make_runner: MakeRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = make_weights(TINY)
    runner = make_runner(TINY, weights)
    feeder = StepFeeder(runner)
    ids = prompt(8, 8)
    feeder.step([feeder.enter(0, ids, 9)], [Chunk(0, 8, True)])
    with pytest.raises(StepError, match="not in prefill"):
        feeder.step(chunks=[Chunk(0, 1, True)], decode=False)
    # Slot 0 was named by the failed step: it is inactive until it is released and entered again.
    assert feeder.step().slots == b""
    feeder.step(release=[0], decode=False)
    assert feeder.generate(0, ids, 4) == dense_greedy(TINY, weights, ids, 4)


def test_a_page_count_is_allocated_once(make_runner: MakeRunner) -> None:
    runner = make_runner(TINY)
    runner.allocate(64)
    with pytest.raises(RuntimeError, match="64 pages are allocated, the scheduler wants 65"):
        runner.allocate(65)


def test_an_empty_step_gives_an_empty_result(make_runner: MakeRunner) -> None:
    result = StepFeeder(make_runner(TINY)).step()
    assert (result.slots, result.ids, result.scheduler_epoch) == (b"", b"", SCHEDULER)


# tests/golden/test_tiny_models.py has longrope, whose frequencies depend on the context length.
@pytest.mark.parametrize("folder", ORACLES, ids=lambda path: path.parent.name)
def test_greedy_output_equals_transformers(folder: Path) -> None:
    oracle = json.loads(folder.read_text())
    config = json.loads((folder.parent / "config.json").read_text())
    settings = Config(
        model=ModelConfig(dtype="float32"),
        worker=WorkerConfig(device="cpu", max_total_tokens=2048),
        scheduler=SchedulerConfig(max_running_requests=8),
        resolved=resolved(folder.parent, config),
    )
    runner = load_runner(settings, lambda: None)
    runner.allocate(runner.capacity.page_count)
    feeder = StepFeeder(runner)
    prompts = {slot: case["prompt_ids"] for slot, case in enumerate(oracle["prompts"])}
    wanted = {slot: case["output_ids"] for slot, case in enumerate(oracle["prompts"])}
    feeder.step(
        [feeder.enter(slot, ids, len(wanted[slot]), GREEDY) for slot, ids in prompts.items()],
        [Chunk(slot, len(ids), True) for slot, ids in prompts.items()],
    )
    for _ in range(max(map(len, wanted.values())) - 1):
        feeder.step()
    assert {slot: out[: len(wanted[slot])] for slot, out in feeder.outputs.items()} == wanted


def test_pages_granted_later_are_used(make_runner: MakeRunner) -> None:
    weights = make_weights(TINY)
    feeder = StepFeeder(make_runner(TINY, weights))
    ids = prompt(14, 9)
    enter = feeder.enter(0, ids, 0)
    assert len(unpack_ids(enter.pages)) == 1
    feeder.step([enter], [Chunk(0, 14, True)])
    feeder.step()
    feeder.step()
    with pytest.raises(StepError, match="no page for position 16"):
        feeder.step()
    feeder.step(release=[0], decode=False)
    enter = feeder.enter(1, ids, 0)
    feeder.step([enter], [Chunk(1, 14, True)])
    feeder.step(pages=[1, 1, feeder.free_pages.pop()])
    for _ in range(4):
        feeder.step()
    assert feeder.outputs[1] == dense_greedy(TINY, weights, ids, 6)
    assert pack_ids(feeder.outputs[0]) == pack_ids(feeder.outputs[1][:3])


def test_pages_of_a_bad_sequence_do_not_affect_the_next_one(make_runner: MakeRunner) -> None:
    """Masked keys have weight 0, but 0 * NaN is NaN."""
    weights = make_weights(TINY)
    weights["model.embed_tokens.weight"][50] = float("nan")
    feeder = StepFeeder(make_runner(TINY, weights))
    bad = feeder.enter(0, [50] * 40, 4)
    assert feeder.step([bad], [Chunk(0, 40, True)]).bad_rows == [0]
    feeder.step(release=[0], decode=False)
    feeder.free_pages = unpack_ids(bad.pages)
    ids = [token for token in prompt(24, 7) if token != 50]
    assert feeder.generate(1, ids, 5) == dense_greedy(TINY, weights, ids, 5)
