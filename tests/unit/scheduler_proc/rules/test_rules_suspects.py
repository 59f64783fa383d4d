"""Requests that end their worker: found one at a time, quarantined, and refused when they come again (STEP-14)."""

from collections.abc import Callable

import pytest

from quartet.wire.frames import Rejected, SamplingParams, unpack_ids
from quartet.wire.ids import Rid
from tests.support.core_rig import VOCAB, CoreRig
from tests.support.strict_worker import continuation

POISON = 66
MOST_EVENTS = 2000


class PoisonRig(CoreRig):
    """A rig whose worker dies of any step with a poisonous request on board. `deaths` counts that."""

    def __init__(self, was_killed: bool = False, min_outputs: int = 0) -> None:
        super().__init__(pages=256, slots=64)
        self.was_killed = was_killed
        self.min_outputs = min_outputs
        self.deaths = 0
        self.poisons: list[Rid] = []
        self.on_board: set[int] = set()

    def submit_poison(self, *prompt: int, max_new: int = 8) -> Rid:
        self.poisons.append(self.submit([POISON, *prompt], max_new))
        return self.poisons[-1]

    def run_with_deaths(self) -> None:
        for _ in range(MOST_EVENTS):
            if not self.steps:
                return
            if self._is_deadly():
                self.deaths += 1
                self.on_board.clear()
                self.worker_lost(self.was_killed)
                self.worker_up()
            else:
                self.step()
        raise AssertionError("the worker dies for ever")

    def _is_deadly(self) -> bool:
        step = self.steps[0]
        self.on_board -= set(unpack_ids(step.release))
        self.on_board |= {enter.slot for enter in step.enter if unpack_ids(enter.ids)[0] == POISON}
        counts = [len(self.outputs(rid)) for rid in self.poisons if not self.ending(rid)]
        return bool(self.on_board) and max(counts, default=0) >= self.min_outputs

    def ending(self, rid: Rid) -> str | None:
        return self.streams[rid, 0].ending


def check_others(rig: PoisonRig, others: dict[Rid, list[int]], count: int) -> None:
    for rid, prompt in others.items():
        assert rig.ending(rid) == "length"
        assert rig.outputs(rid) == continuation(prompt, count, VOCAB, -1)


def submit_others(rig: PoisonRig, number: int, max_new: int) -> dict[Rid, list[int]]:
    params = SamplingParams(max_new_tokens=max_new, ignore_eos=True)
    prompts = [[1 + i, 2, 3] for i in range(number)]
    return {rig.submit(prompt, params=params): prompt for prompt in prompts}


@pytest.mark.parametrize("was_killed", [False, True], ids=["crash", "SIGKILL"])
@pytest.mark.parametrize("arrives", ["with the others", "while they run"])
def test_step14_a_poison_among_39_is_quarantined_within_three_deaths(was_killed: bool, arrives: str) -> None:
    rig = PoisonRig(was_killed)
    others = submit_others(rig, 39, 20)
    if arrives == "while they run":
        for _ in range(12):
            rig.step()
    poison = rig.submit_poison(2, 3)
    rig.run_with_deaths()
    assert rig.ending(poison) == "request_quarantined"
    assert rig.deaths <= 3
    check_others(rig, others, 20)


def test_two_poisons_in_one_batch_are_both_found() -> None:
    rig = PoisonRig(was_killed=True)
    others = submit_others(rig, 10, 20)
    poisons = [rig.submit_poison(5), rig.submit_poison(6)]
    rig.run_with_deaths()
    assert [rig.ending(poison) for poison in poisons] == ["request_quarantined"] * 2
    assert rig.deaths <= 6
    check_others(rig, others, 20)


def test_a_poison_that_ends_the_worker_after_some_output_is_found() -> None:
    rig = PoisonRig(min_outputs=5)
    others = submit_others(rig, 10, 40)
    poison = rig.submit_poison(5, max_new=40)
    rig.run_with_deaths()
    assert rig.ending(poison) == "request_quarantined"
    assert rig.deaths <= 3
    check_others(rig, others, 40)


def test_kills_at_random_moments_fail_no_request() -> None:
    rig = PoisonRig(was_killed=True)
    others = submit_others(rig, 20, 30)
    for steps in (3, 1, 2, 7, 1, 4, 9, 2):
        for _ in range(steps):
            rig.step()
        rig.worker_lost(was_killed=True)
        rig.worker_up()
    rig.run()
    check_others(rig, others, 30)


def _quarantined(max_new: int = 8) -> PoisonRig:
    rig = PoisonRig()
    rig.submit_poison(1)
    rig.run_with_deaths()
    assert rig.ending(rig.poisons[0]) == "request_quarantined"
    return rig


def _answer(rig: PoisonRig, submit: Callable[[], Rid]) -> Rejected | None:
    rejected: list[Rejected] = []
    rig.watch(lambda frame: rejected.append(frame) if isinstance(frame, Rejected) else None)
    submit()
    return rejected[-1] if rejected else None


def test_a_repeat_is_refused_at_once_whatever_its_seed_and_length() -> None:
    rig = _quarantined()
    params = SamplingParams(max_new_tokens=3, seed=7)
    refusal = _answer(rig, lambda: rig.submit([POISON, 1], params=params))
    assert refusal is not None and (refusal.status, refusal.code) == (422, "request_quarantined")
    assert not rig.steps


def test_another_prompt_is_taken() -> None:
    rig = _quarantined()
    assert _answer(rig, lambda: rig.submit([POISON + 1, 1])) is None


def test_a_repeat_is_taken_when_its_time_is_over_and_refused_for_longer_after_a_relapse() -> None:
    rig = _quarantined()
    rig.now += 601
    rig.submit_poison(1)
    rig.run_with_deaths()
    assert rig.ending(rig.poisons[-1]) == "request_quarantined"
    rig.now += 601
    assert _answer(rig, lambda: rig.submit([POISON, 1])) is not None
