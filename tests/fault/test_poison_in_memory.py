"""Requests that end the worker each time they run, among others: found, refused, and nothing else is hurt (case 25)."""

import random

import pytest

from quartet.client.request import GenerateRequest
from quartet.wire.frames import IdsPrompt, Step, pack_ids, unpack_ids
from quartet.wire.ids import Epoch, Role
from tests.support.faulty_engine import FaultyEngine
from tests.support.history import History
from tests.support.request_kinds import SIMULATED, prepared
from worker_proc.contract import DeviceLostError
from worker_proc.simulated import SimulatedRunner, SimulatedStep

PROMPTS = [[10 + i, 20, 30, *range(40, 40 + 7 * i)] for i in range(12)]
POISON = 499
LIMIT = 3_000


class PoisonedRunner(SimulatedRunner):
    """Loses its device when a request whose prompt holds POISON has about `late` outputs."""

    late = 0

    def _make_state(self) -> None:
        super()._make_state()
        self._steps_left: int | None = None

    def launch(self, step: Step, scheduler_epoch: Epoch) -> SimulatedStep:
        for enter in step.enter:
            ids = unpack_ids(enter.ids)
            if POISON in ids:
                self._steps_left = max(0, self.late - len(ids) + enter.prompt_length)
        if self._steps_left is not None:
            self._steps_left -= 1
            if self._steps_left < 0:
                raise DeviceLostError("the device is lost")
        return super().launch(step, scheduler_epoch)


class LatePoisonedRunner(PoisonedRunner):
    late = 6


def poisoned(prompt: list[int], like: GenerateRequest) -> GenerateRequest:
    return GenerateRequest(prompt=IdsPrompt(pack_ids([*prompt, POISON])), params=like.params)


def run(engine: FaultyEngine, poisons: int) -> list[History]:
    """Run twelve requests and some poison among them; returns the histories of the poison."""
    made, expected = prepared("greedy", SIMULATED, PROMPTS)
    others = [engine.begin(*pair) for pair in zip(made[:6], expected[:6], strict=True)]
    engine.steps(30)
    bad = [engine.begin(poisoned([7 + i], made[0])) for i in range(poisons)]
    others += [engine.begin(*pair) for pair in zip(made[6:], expected[6:], strict=True)]
    histories = [*bad, *others]
    for _ in range(LIMIT):
        if all(history.is_over for history in histories):
            break
        engine.steps(1)
    for history in others:
        history.check()
    engine.finish(histories)
    engine.check_nothing_left()
    return bad


def check_refused(history: History) -> None:
    assert history.error is not None, "the poison has ended well"
    assert history.error.code == "request_quarantined", history.error


@pytest.mark.parametrize("runner", [PoisonedRunner, LatePoisonedRunner], ids=["at once", "at an output"])
def test_poison(runner: type[SimulatedRunner]) -> None:
    engine = FaultyEngine(random.Random(0), runner_class=runner)
    check_refused(run(engine, 1)[0])
    assert engine.deaths[Role.WORKER] <= 3
    deaths = engine.deaths[Role.WORKER]
    again = engine.begin(poisoned([7], prepared("greedy", SIMULATED, PROMPTS[:1])[0][0]))
    engine.finish([again])
    check_refused(again)
    assert engine.deaths[Role.WORKER] == deaths, "a repetition has been run"


def test_a_poison_request_is_found_and_nothing_else_is_hurt() -> None:
    test_poison(PoisonedRunner)


def test_two_of_them() -> None:
    engine = FaultyEngine(random.Random(0), runner_class=PoisonedRunner)
    for history in run(engine, 2):
        check_refused(history)
    assert engine.deaths[Role.WORKER] <= 6
