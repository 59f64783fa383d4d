"""Kinds of requests whose answers depend on more than their ids, and their answers in an undisturbed run."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from msgspec.structs import replace

from quartet.client.request import GenerateRequest
from quartet.wire.frames import Grammar, IdsPrompt, SamplingParams, pack_ids
from tests.support.faulty_engine import FaultyEngine
from tests.support.grammars import person, regex
from tests.support.history import Choice
from worker_proc.contract import Runner
from worker_proc.simulated import SimulatedRunner

TOKENS = 30
MIDDLE, EARLY = -1, -2
"""In the place of a stop string or token: one that an undisturbed run comes to."""
SPLIT_IDS = (105, 119, 130, 163, 175, 225, 247, 249, 256)
"""Ids of the tiny tokenizer that stand for single bytes of "é世😀"."""

Expected = Sequence[list[Choice] | None]
Kind = Callable[[int], dict[str, Any]]
"""Given the number of a request, the fields of its sampling parameters, and `n`."""


def _seeded(i: int) -> dict[str, Any]:
    filters = {"temperature": 0.9, "seed": 77 + i, "top_p": 0.95, "top_k": 200, "min_p": 0.001}
    penalties = {"presence_penalty": 0.7, "frequency_penalty": 0.4, "repetition_penalty": 1.2}
    return {**filters, **penalties, "logit_bias": ((5 + i, 3.0),)}


def _grammar(i: int) -> Grammar | None:
    """Return a grammar, but none for one of the requests."""
    return None if i == 3 else (person() if i % 2 else regex()).grammar


SIMULATED: dict[str, Kind] = {
    "greedy": lambda i: {},
    "n = 4": lambda i: {"n": 4},
    "stop strings": lambda i: {"stop": MIDDLE},
    "logprobs": lambda i: {"logprobs": 3},
    "prompt logprobs": lambda i: {"prompt_logprobs": 2, "logprobs": i - 1, "n": 1 + i % 2},
    "min_tokens": lambda i: {"stop": EARLY, "min_new_tokens": 12},
    "split characters": lambda i: {},
    "stop token": lambda i: {"stop_token_ids": MIDDLE},
    "noisy": lambda i: {},
    "grammar": lambda i: {"grammar": _grammar(i), "ignore_eos": False, "n": 2, "max_new_tokens": 200},
}
REAL: dict[str, Kind] = {
    "greedy": lambda i: {"logprobs": 0 if i % 2 else -1},
    "seeded, penalties": _seeded,
    "n = 4": lambda i: {"n": 4, "temperature": 1.0, "seed": 5 + i},
    "stop strings": lambda i: {"stop": MIDDLE, "temperature": 1.0, "seed": i},
    "logprobs": lambda i: {"logprobs": 2, "temperature": 1.0, "seed": 31 + i},
    "prompt logprobs": lambda i: {"prompt_logprobs": i % 3, "temperature": 1.0, "seed": 41 + i},
    "min_tokens": lambda i: {"logit_bias": ((2, 100.0),), "min_new_tokens": 9 + i, "ignore_eos": False},
    "split characters": lambda i: {"logit_bias": tuple((one, 100.0) for one in SPLIT_IDS), "temperature": 1.0},
    "grammar": lambda i: {"grammar": _grammar(i), "ignore_eos": False, "temperature": 1.0, "seed": i, "n": 2},
}
"""For a model: the simulated worker does not look at seeds, penalties, biases and the end of sequence."""


class SplitRunner(SimulatedRunner):
    """A simulated runner whose tokens are bytes of characters of several bytes."""

    def _make_state(self) -> None:
        super()._make_state()
        self.model._allowed = np.array(SPLIT_IDS)


class NoisyRunner(SimulatedRunner):
    """A simulated runner that answers otherwise each time it begins anew, as a model without batch invariance may."""

    begun = 0

    def _make_state(self) -> None:
        super()._make_state()
        NoisyRunner.begun += 1
        self.model._allowed = np.roll(self.model._allowed, NoisyRunner.begun)


RUNNERS = {"split characters": SplitRunner, "noisy": NoisyRunner}


def make_engine(kind: str, chance: random.Random, runner: Runner | None = None, **scheduler: Any) -> FaultyEngine:
    """Return an engine for requests of a simulated kind, or on a given runner."""
    return FaultyEngine(chance, runner, RUNNERS.get(kind, SimulatedRunner), **scheduler)


def requests(kind: str, kinds: dict[str, Kind], prompts: list[list[int]]) -> list[GenerateRequest]:
    """Return a request for each prompt; stops are still to be chosen."""
    made = []
    for i, prompt in enumerate(prompts):
        fields = {"temperature": 0.0, "ignore_eos": True, "max_new_tokens": TOKENS + 3 * i, **kinds[kind](i)}
        n = fields.pop("n", 1)
        fields = {name: value for name, value in fields.items() if value not in (MIDDLE, EARLY)}
        made.append(GenerateRequest(prompt=IdsPrompt(pack_ids(prompt)), params=SamplingParams(**fields), n=n))
    return made


def undisturbed(engine: FaultyEngine, made: list[GenerateRequest]) -> list[list[Choice]]:
    """Run requests without faults; returns the choices of each."""
    histories = [engine.begin(request) for request in made]
    engine.finish(histories)
    for history in histories:
        history.check()
    engine.check_nothing_left()
    return [history.choices for history in histories]


def prepared(
    kind: str, kinds: dict[str, Kind], prompts: list[list[int]], runner: Runner | None = None
) -> tuple[list[GenerateRequest], Expected]:
    """Return the requests of a kind, and what an undisturbed run answers, if that can be said."""
    made = requests(kind, kinds, prompts)
    if kind == "noisy":
        return made, [None] * len(made)
    found = undisturbed(make_engine(kind, random.Random(0), runner), made)
    for i, choices in enumerate(found):
        wanted = kinds[kind](i)
        params = made[i].params
        if "stop" in wanted:
            params = replace(params, stop=(stop_string(choices[0], wanted["stop"]),))
        if "stop_token_ids" in wanted:
            params = replace(params, stop_token_ids=(choices[0].ids[TOKENS // 2],))
        made[i] = replace(made[i], params=params)
    return made, undisturbed(make_engine(kind, random.Random(0), runner), made)


def stop_string(choice: Choice, where: int) -> str:
    """Return three characters of a text, from its middle or near its begin, which no token holds as a whole if
    possible."""
    start = len(choice.text) // (2 if where == MIDDLE else 6)
    return choice.text[start : start + 3]
