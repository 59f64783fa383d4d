"""Prompts whose tokens are scored: they read nothing from the cache, and each token comes once (TREE-11)."""

import itertools
import random
from typing import Any

import pytest
from msgspec.structs import replace

from quartet.client.request import GenerateRequest
from quartet.wire.frames import IdsPrompt, SamplingParams, pack_ids
from quartet.wire.ids import Role
from tests.support.faulty_engine import FaultyEngine
from tests.support.history import History
from tests.support.request_kinds import make_engine
from worker_proc.contract import StepError
from worker_proc.simulated import SimulatedRunner

CHUNK = 64
LENGTHS = (1, 2, CHUNK, CHUNK + 1, CHUNK + 2, 2 * CHUNK, 2 * CHUNK + 1, 200)


def ids_of(length: int, number: int = 0) -> list[int]:
    return [10 + (7 * i + 13 * number) % 400 for i in range(length)]


def request(ids: list[int], tokens: int = 4, wanted: int = 2, **fields: Any) -> GenerateRequest:
    params = SamplingParams(max_new_tokens=tokens, ignore_eos=True, prompt_logprobs=wanted, **fields)
    return GenerateRequest(prompt=IdsPrompt(pack_ids(ids)), params=params)


def run(engine: FaultyEngine, *requests: GenerateRequest) -> list[History]:
    histories = [engine.begin(one) for one in requests]
    engine.finish(histories)
    for history in histories:
        history.check()
    engine.check_nothing_left()
    return histories


def check_scores(history: History, ids: list[int]) -> None:
    """Each token has the number that the simulated worker computes from the token before it and its position."""
    (choice,) = history.choices
    assert choice.prompt[0].rank == -1
    for position, (before, token) in enumerate(itertools.pairwise(ids), start=1):
        scored = choice.prompt[position]
        assert scored.logprob == -(1 + (31 * before + 7 * token + position) % 64) / 8
        assert scored.rank == 1 + (token + position) % 7
        assert scored.top_ids == ((token + 1) % 512, (token + 2) % 512)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"chunked_prefill_size": -1},
        {"enable_mixed_chunk": True},
        {"step_order": "decode_first"},
        {"test_retract": True},
        {"disable_radix_cache": True},
        {"stream_interval": 3},
    ],
    ids=str,
)
def test_tree11_every_token_but_the_first_is_scored_once(settings: dict[str, Any]) -> None:
    engine = make_engine("prompt logprobs", random.Random(0), **settings)
    prompts = [ids_of(length, number) for number, length in enumerate(LENGTHS)]
    requests = [request(ids, tokens=number % 3 * 5) for number, ids in enumerate(prompts)]
    for history, ids in zip(run(engine, *requests), prompts, strict=True):
        check_scores(history, ids)


def cached(history: History) -> int:
    finish = history.choices[0].finish
    assert finish is not None
    return finish.timings.cached_tokens


def test_tree11_a_scored_prompt_takes_nothing_from_the_tree_and_leaves_itself_there() -> None:
    engine, ids = make_engine("prompt logprobs", random.Random(0)), ids_of(150)
    (first,) = run(engine, request(ids))
    (again,) = run(engine, request(ids))
    (plain,) = run(engine, request(ids, wanted=-1))
    check_scores(first, ids)
    check_scores(again, ids)
    assert (cached(first), cached(again), cached(plain)) == (0, 0, 144)


class FailingRunner(SimulatedRunner):
    """Fails the second step that scores a chunk, once."""

    scored = 0

    def _run(self, rows: Any) -> Any:
        FailingRunner.scored += any(chunk.alternatives >= 0 for chunk in rows.chunks)
        if FailingRunner.scored == 2:
            FailingRunner.scored += 1
            raise StepError("a failed step")
        return super()._run(rows)


def test_tree11_after_a_failed_step_the_prompt_is_scored_from_its_beginning() -> None:
    FailingRunner.scored = 0
    engine, ids = FaultyEngine(random.Random(0), None, FailingRunner), ids_of(200)
    (history,) = run(engine, request(ids))
    check_scores(history, ids)


@pytest.mark.parametrize("role", [Role.WORKER, Role.SCHEDULER, Role.DETOK])
@pytest.mark.parametrize("outputs", [0, 2])
def test_tree11_what_the_client_has_is_not_scored_again(role: Role, outputs: int) -> None:
    engine, ids = make_engine("prompt logprobs", random.Random(0)), ids_of(200)
    history = engine.begin(request(ids, tokens=9))
    engine.step_until(lambda: bool(history.choices[0].prompt) and len(history.choices[0].ids) >= outputs)
    engine.die(role, keeps_inbox=False)
    engine.finish([history])
    history.check()
    check_scores(history, ids)
    engine.check_nothing_left()


def test_tree11_scores_outlive_a_preemption_whenever_it_comes() -> None:
    settings = {"max_running_requests": 1, "enable_priority_scheduling": True}
    preempted = 0
    for things in range(8, 60, 2):
        engine = make_engine(
            "prompt logprobs", random.Random(0), priority_scheduling_preemption_threshold=0, **settings
        )
        ids, others = ids_of(150), ids_of(40, 1)
        first = engine.begin(replace(request(ids, tokens=9), priority=0))
        engine.steps(things)
        second = engine.begin(replace(request(others), priority=9))
        engine.finish([first, second])
        for history, prompt in ((first, ids), (second, others)):
            history.check()
            check_scores(history, prompt)
        preempted += engine.scheduler._counters.preemptions > 0
    assert preempted > 5
