"""Grammars through the whole engine in memory: every output matches, and a death in its middle changes no byte."""

import random

import pytest

from quartet.client.request import GenerateRequest
from quartet.wire.frames import IdsPrompt, SamplingParams, pack_ids
from quartet.wire.ids import Role
from tests.support.faulty_engine import INNER, FaultyEngine
from tests.support.grammars import Matching, person, regex
from tests.support.history import Choice, History
from tests.support.tiny_runner import tiny_runner

MATCHING: list[Matching | None] = [person(), None, regex(), person(spaces=False), None]


def requests(n: int = 1) -> list[GenerateRequest]:
    made = []
    for i, one in enumerate(MATCHING):
        grammar = None if one is None else one.grammar
        params = SamplingParams(max_new_tokens=300 if one else 40, ignore_eos=one is None, seed=i, grammar=grammar)
        made.append(
            GenerateRequest(prompt=IdsPrompt(pack_ids([10 + i, 20, 30, *range(40, 40 + 9 * i)])), params=params, n=n)
        )
    return made


def check(histories: list[History]) -> list[list[Choice]]:
    """Check that all outputs match; returns them."""
    for history, one in zip(histories, MATCHING, strict=True):
        history.check()
        for choice in history.choices:
            assert choice.finish is not None and choice.finish.reason == ("length" if one is None else "stop")
            assert one is None or one.matches(choice.text), choice.text
    return [history.choices for history in histories]


def undisturbed(n: int = 1) -> list[list[Choice]]:
    engine = FaultyEngine(random.Random(0))
    histories = [engine.begin(request) for request in requests(n)]
    engine.finish(histories)
    engine.check_nothing_left()
    return check(histories)


@pytest.mark.parametrize("n", [1, 3])
def test_every_output_matches(n: int) -> None:
    undisturbed(n)


def test_a_retraction_changes_no_byte() -> None:
    engine = FaultyEngine(random.Random(0), test_retract=True)
    expected = undisturbed()
    histories = [engine.begin(*pair) for pair in zip(requests(), expected, strict=True)]
    engine.finish(histories)
    check(histories)


@pytest.mark.parametrize("keeps_inbox", [True, False], ids=["inbox kept", "inbox lost"])
@pytest.mark.parametrize("role", INNER, ids=lambda role: role.label)
def test_a_death_in_mid_object_changes_no_byte(role: Role, keeps_inbox: bool) -> None:
    expected = undisturbed()
    engine = FaultyEngine(random.Random(0))
    histories = [engine.begin(*pair) for pair in zip(requests(), expected, strict=True)]
    middle = len(expected[0][0].ids) // 2
    engine.step_until(lambda: len(histories[0].choices[0].ids) >= middle)
    engine.die(role, keeps_inbox)
    engine.steps(10)
    engine.finish(histories)
    check(histories)
    engine.check_nothing_left()


@pytest.mark.parametrize("role", [Role.WORKER, Role.SCHEDULER], ids=lambda role: role.label)
def test_a_death_changes_no_byte_of_the_models_output(role: Role) -> None:
    pattern = "[a-f]{20,30}"
    params = SamplingParams(max_new_tokens=60, temperature=1.0, seed=7, grammar=regex(pattern).grammar)
    plain = SamplingParams(max_new_tokens=20, temperature=1.0, seed=8, ignore_eos=True)
    made = [
        GenerateRequest(prompt=IdsPrompt(pack_ids([10, 20, 30])), params=params, n=2),
        GenerateRequest(prompt=IdsPrompt(pack_ids([11, 20])), params=plain),
    ]
    engine = FaultyEngine(random.Random(0), tiny_runner())
    calm = [engine.begin(request) for request in made]
    engine.finish(calm)
    assert all(regex(pattern).matches(choice.text) for choice in calm[0].choices)
    engine = FaultyEngine(random.Random(0), tiny_runner())
    histories = [engine.begin(request, before.choices) for request, before in zip(made, calm, strict=True)]
    engine.step_until(lambda: len(histories[0].choices[0].ids) >= 5)
    engine.die(role, keeps_inbox=False)
    engine.finish(histories)
    for history in histories:
        history.check()


@pytest.mark.parametrize("destination", ["worker-0", "scheduler-0"])
def test_lost_frames_hang_no_request(destination: str) -> None:
    expected = undisturbed()
    engine, chance = FaultyEngine(random.Random(0)), random.Random(4)
    engine.wire.fault = lambda to, data: [] if to == destination and chance.random() < 0.2 else [data]
    histories = [engine.begin(*pair) for pair in zip(requests(), expected, strict=True)]
    engine.steps(300)
    engine.wire.fault = None
    engine.finish(histories)
    check(histories)
    engine.check_nothing_left()


def test_a_grammar_that_is_none_fails_its_request_alone() -> None:
    engine = FaultyEngine(random.Random(0))
    made = requests()
    broken = SamplingParams(max_new_tokens=9, grammar=regex("(").grammar)
    histories = [engine.begin(request) for request in made]
    wrong = engine.begin(GenerateRequest(prompt=IdsPrompt(pack_ids([1, 2])), params=broken))
    engine.finish([*histories, wrong])
    check(histories)
    assert wrong.error is not None and wrong.error.code == "invalid_grammar"
    engine.check_nothing_left()
