"""Log-likelihoods of prompts against transformers on the same GGUF, in float32: alone, together, cut, interrupted.

The issue allows 0.02 nats a token; float32 leaves a tenth of that.
"""

import json
import random
from collections.abc import Iterable

import pytest

from quartet.client.request import GenerateRequest
from quartet.wire.frames import IdsPrompt, SamplingParams, pack_ids
from quartet.wire.ids import Role
from tests.golden.oracles import FOLDER, load
from tests.support.faulty_engine import FaultyEngine
from tests.support.history import History
from tests.support.local_engine import make_config
from worker_proc.contract import Runner

NATS = 0.002
pytestmark = pytest.mark.timeout(600)
PROMPTS = {oracle.name: oracle.prompt_ids for oracle in load(FOLDER / "smollm2_oracle.json")}
SCORES = {row["name"]: row for row in json.loads((FOLDER / "smollm2_logprobs.json").read_text())["prompts"]}
FEW = ("few_words", "counting", "chat_capital", "scripts", "code_json", "whitespace")


@pytest.fixture(scope="module")
def runner() -> Runner:
    from worker_proc.loading import load_runner

    return load_runner(make_config("smollm2"), lambda: None)


def begun(engine: FaultyEngine, names: Iterable[str]) -> dict[str, History]:
    params = SamplingParams(max_new_tokens=0, prompt_logprobs=1)
    return {
        name: engine.begin(GenerateRequest(prompt=IdsPrompt(pack_ids(PROMPTS[name])), params=params)) for name in names
    }


def check(engine: FaultyEngine, histories: dict[str, History]) -> None:
    """Every number is transformers', and the ranks are, but for ties."""
    engine.finish(histories.values())
    for name, history in histories.items():
        history.check()
        found, wanted = history.choices[0].prompt[1:], SCORES[name]
        worst = max(abs(one.logprob - value) for one, value in zip(found, wanted["logprobs"], strict=True))
        assert worst < NATS, f"{name}: {worst} nats"
        assert abs(sum(one.logprob for one in found) - sum(wanted["logprobs"])) < NATS * len(found)
        ranks = [(one.rank, rank) for one, rank in zip(found, wanted["ranks"], strict=True)]
        assert sum(a != b for a, b in ranks) <= len(ranks) / 20
        assert [a == 1 for a, _ in ranks] == [b == 1 for _, b in ranks], "another token is the most likely"
    engine.check_nothing_left()


def make(runner: Runner, **scheduler: object) -> FaultyEngine:
    return FaultyEngine(random.Random(0), runner, **scheduler)


def test_six_prompts_together(runner: Runner) -> None:
    engine = make(runner, chunked_prefill_size=512)
    check(engine, begun(engine, FEW))


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [16, 48, 512, -1])
def test_all_prompts_together_in_chunks(runner: Runner, chunk: int) -> None:
    engine = make(runner, chunked_prefill_size=chunk)
    check(engine, begun(engine, SCORES))


@pytest.mark.slow
def test_each_prompt_alone_and_once_more_when_it_is_cached(runner: Runner) -> None:
    engine = make(runner, chunked_prefill_size=512)
    for name in SCORES:
        check(engine, begun(engine, [name]))
        check(engine, begun(engine, [name]))


@pytest.mark.slow
@pytest.mark.parametrize("role", [Role.WORKER, Role.SCHEDULER, Role.DETOK])
def test_a_death_in_the_middle_of_a_prompt(runner: Runner, role: Role) -> None:
    engine = make(runner, chunked_prefill_size=64)
    histories = begun(engine, ["harbour_end", "library_late", "long_chat"])
    engine.step_until(lambda: engine.scheduler._batch.chunked is not None)
    engine.steps(12)
    engine.die(role, keeps_inbox=False)
    check(engine, histories)
