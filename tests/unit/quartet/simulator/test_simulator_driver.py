"""The virtual clock and the device: hand-computed times, agreement with the strict worker, conservation."""

import random
import time
from typing import Any

import msgspec
import pytest

import quartet.simulator.driver as driver_module
from quartet.simulator.device import SimulatedDevice
from quartet.simulator.driver import SimulatedEngine, simulate
from quartet.simulator.record import Run
from quartet.simulator.request import Workload
from quartet.wire.config import SchedulerConfig
from quartet.wire.frames import Step, StepResult, unpack_ids
from quartet.wire.ids import Epoch
from scheduler_proc.core.step_cost import StepCost
from tests.support.strict_worker import StrictWorker

UNIT = StepCost(1.0, 0.0, 0.0, 0.0, 0.0)


def engine(cost: StepCost = UNIT, kv_tokens: int = 4096, page_size: int = 4, slots: int = 8) -> SimulatedEngine:
    return SimulatedEngine(cost=cost, kv_tokens=kv_tokens, context_length=4096, page_size=page_size, max_slots=slots)


def plain(at: float, own: int = 8, out: int = 3, most: int | None = None, **fields: Any) -> Workload:
    return Workload(arrival_s=at, max_tokens=most or out, output_tokens=out, own_tokens=own, **fields)


def times(run: Run) -> list[tuple[float, float, float]]:
    return [(outcome.admitted_s, outcome.first_token_s, outcome.end_s) for outcome in run.outcomes]


def test_one_request_takes_a_prefill_and_its_decode_steps() -> None:
    run = simulate([plain(5.0)], engine(), SchedulerConfig())
    assert times(run) == [(5.0, 6.0, 8.0)]
    assert (run.outcomes[0].ending, run.outcomes[0].output_tokens) == ("length", 3)


def test_with_one_slot_the_second_request_begins_when_the_last_row_of_the_first_is_launched() -> None:
    # A: steps 1 to 3, ending at 1, 2 and 3. Its slot is free once step 3 is issued, so step 4 is B's prefill.
    run = simulate([plain(0.0), plain(0.0)], engine(), SchedulerConfig(max_running_requests=1))
    assert times(run) == [(0.0, 1.0, 3.0), (3.0, 4.0, 6.0)]
    assert run.admission_order == [0, 1]


def test_an_early_stop_ends_the_request_and_wastes_one_row() -> None:
    run = simulate([plain(0.0, out=2, most=50)], engine(), SchedulerConfig())
    (outcome,) = run.outcomes
    assert (outcome.ending, outcome.output_tokens, outcome.end_s) == ("stop", 2, 2.0)
    assert run.counters["wasted_rows"] == 1


def test_each_term_of_the_cost_is_charged_for_what_it_counts() -> None:
    # Step 1: 8 prompt tokens, 36 pairs. Steps 2 and 3: one row each over 9 and 10 tokens.
    cost = StepCost(0.0, 1.0, 100.0, 1e4, 1e6)
    (outcome,) = simulate([plain(0.0)], engine(cost), SchedulerConfig()).outcomes
    assert outcome.first_token_s == 8 + 3600
    assert outcome.end_s == outcome.first_token_s + 2e4 + 19e6


def test_a_shared_prefix_is_cached_as_far_as_it_is_shared() -> None:
    shared = {"prefix_group": "a", "prefix_tokens": 16}
    requests = [plain(0.0, **shared), plain(10.0, **shared), plain(20.0, prefix_group="b", prefix_tokens=16)]
    run = simulate(requests, engine(), SchedulerConfig())
    assert [outcome.cached_tokens for outcome in run.outcomes] == [0, 16, 0]


def test_prompt_ids_and_page_hashes_share_what_they_have_in_common() -> None:
    def hashed(at: float, *hashes: str) -> Workload:
        return Workload(
            arrival_s=at, max_tokens=2, output_tokens=2, page_hashes=list(hashes), page_tokens=8, prompt_tokens=20
        )

    def named(at: float, ids: list[int]) -> Workload:
        return Workload(arrival_s=at, max_tokens=2, output_tokens=2, prompt_ids=ids)

    requests = [hashed(0, "x", "y"), hashed(10, "x", "z"), named(20, list(range(90, 110))), named(30, [*range(90, 99)])]
    run = simulate(requests, engine(), SchedulerConfig())
    assert [outcome.cached_tokens for outcome in run.outcomes] == [0, 8, 0, 8]


def test_gaps_between_tokens_span_a_prefill_that_comes_between() -> None:
    cost = StepCost(1.0, 1.0, 0.0, 0.0, 0.0)
    run = simulate(
        [plain(0.0, out=6, class_name="a"), plain(9.5, own=20, class_name="b")], engine(cost), SchedulerConfig()
    )
    gaps = run.gaps["a"]
    # The decode steps already issued when b arrives come first; then its prefill of 21 s delays one token of a.
    expanded = [seconds for seconds, count in zip(gaps.seconds, gaps.counts, strict=True) for _ in range(count)]
    assert sorted(expanded) == [1.0, 1.0, 1.0, 1.0, 22.0]


class Checked(SimulatedDevice):
    """Runs each step through the strict worker too; rows must be the same, and so must the context."""

    strict: StrictWorker
    steps = 0

    def launch(self, step: Step, now: float) -> tuple[float, StepResult]:
        end_s, result = super().launch(step, now)
        strict = self.strict.run(step)
        mine = list(zip(unpack_ids(result.slots), unpack_ids(result.generations), strict=True))
        theirs = list(zip(unpack_ids(strict.slots), unpack_ids(strict.generations), strict=True))
        assert sorted(mine) == sorted(theirs)
        for slot, token_id in zip(unpack_ids(result.slots), unpack_ids(result.ids), strict=True):
            self.strict.slots[slot].last_token = token_id
        decoding = [slot for slot in self.strict.slots.values() if not slot.is_prefilling]
        assert self._context_tokens == sum(slot.num_computed_tokens for slot in decoding)
        Checked.steps += 1
        return end_s, result


@pytest.mark.parametrize("mixed", [{}, {"enable_mixed_chunk": True}, {"step_order": "decode_first"}])
@pytest.mark.parametrize("seed", range(3))
def test_the_device_runs_the_rows_that_a_real_worker_would(
    seed: int, mixed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(seed)
    requests, now = [], 0.0
    for _ in range(60):
        now += rng.expovariate(4.0)
        most = rng.randint(1, 60)
        group = {"prefix_group": str(rng.randrange(3)), "prefix_tokens": rng.randrange(12)}
        requests.append(plain(now, rng.randint(1, 12), rng.randint(1 + most // 2, most), most, **group))
    small = engine(kv_tokens=112, slots=6)

    def checked(cost: StepCost, run: Run) -> Checked:
        device = Checked(cost, run)
        device.strict = StrictWorker(Epoch(1), small.kv_tokens // small.page_size, small.page_size, 6, 7)
        return device

    monkeypatch.setattr(driver_module, "SimulatedDevice", checked)
    Checked.steps = 0
    config = SchedulerConfig(chunked_prefill_size=16, schedule_conservativeness=0.0, **mixed)
    run = simulate(requests, small, config)
    assert Checked.steps > 100 and run.counters["retractions"] > 0
    assert [outcome.output_tokens for outcome in run.outcomes] == [request.output_tokens for request in requests]


def test_decode_rows_join_prompts_on_an_engine_whose_worker_mixes() -> None:
    requests = [plain(0.0, out=12), plain(3.5, own=16)]
    for mixed_tokens, longest_s in ((0, 2.0), (64, 1.0)):
        mixing = msgspec.structs.replace(engine(), mixed_tokens=mixed_tokens)
        assert max(simulate(requests, mixing, SchedulerConfig()).gaps["all"].seconds) == longest_s


def test_every_request_ends_once_and_the_tokens_add_up() -> None:
    rng = random.Random(7)
    requests = [plain(i * 0.2, rng.randint(1, 60), rng.randint(1, 20), 20) for i in range(200)]
    run = simulate(requests, engine(), SchedulerConfig())
    expected = sum(request.output_tokens for request in requests)
    assert all(outcome.is_finished and outcome.end_s >= outcome.first_token_s for outcome in run.outcomes)
    assert [outcome.output_tokens for outcome in run.outcomes] == [request.output_tokens for request in requests]
    assert run.counters["output_tokens"] == expected
    # Every row gives a token or is wasted: one from each prefill, the others from decode rows.
    assert run.decode_rows + len(requests) == expected + run.counters["wasted_rows"]
    assert sum(gap for gaps in run.gaps.values() for gap in gaps.counts) == expected - len(requests)


def test_what_the_queue_refuses_is_reported_as_rejected() -> None:
    requests = [plain(0.0) for _ in range(30)]
    run = simulate(requests, engine(slots=1), SchedulerConfig(max_queued_requests=4, max_running_requests=1))
    endings = {outcome.ending for outcome in run.outcomes}
    assert endings == {"length", "queue_full"}
    assert all(outcome.is_rejected == (outcome.ending == "queue_full") for outcome in run.outcomes)


def test_two_thousand_requests_take_seconds() -> None:
    """About 1.5 s of a quiet core; other load on the same core costs up to three times as much."""
    requests = [plain(i / 60, 256, 64) for i in range(2000)]
    started = time.process_time()
    cost = StepCost(6.5e-3, 2.2e-5, 8.8e-10, 1.1e-5, 4.3e-8)
    run = simulate(requests, engine(cost, 400_000, 16, 512), SchedulerConfig())
    assert time.process_time() - started < 6.0
    assert all(outcome.is_finished for outcome in run.outcomes)
