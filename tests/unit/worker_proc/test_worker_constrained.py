"""Constrained rows of the real runner on the CPU: sampled late, beside rows that are not, the same ids whatever the
number of steps in flight."""

import functools
from typing import Any

import numpy as np
import pytest
import torch
from llguidance import LLTokenizer

from quartet.wire.frames import Chunk, SamplingParams, Step, StepResult, unpack_ids
from tests.golden.oracles import FOLDER
from tests.support.grammars import Matching, person, regex, tiny_tokenizer
from tests.support.local_engine import LocalEngine, make_config
from tests.unit.worker_proc.step_feeder import SCHEDULER, WORKER, StepFeeder
from worker_proc.device_step import DeviceStep
from worker_proc.runner import ModelRunner

MODEL = FOLDER / "models" / "qwen3"
PROMPTS = [[9, 8, 7], [5 + at % 60 for at in range(18)], [40, 41], [50, 51, 52, 53]]


@functools.cache
def engine() -> LocalEngine:
    return LocalEngine(make_config(MODEL, max_total_tokens=2048))


@functools.cache
def tokenizer() -> LLTokenizer:
    return tiny_tokenizer()


def closing_bias(value: float = 6.0) -> tuple[tuple[int, float], ...]:
    """A bias towards ids that end strings and objects, so that outputs of random weights end."""
    return tuple((token, value) for char in '"}],' for token in tokenizer().tokenize_str(char))


def text_of(ids: list[int]) -> str:
    return tokenizer().decode_str([one for one in ids if one != 2])


def run(in_flight: int, params: list[dict[str, Any]], **scheduler: Any) -> list[list[int]]:
    engine().max_in_flight = in_flight
    engine().restart(**scheduler)
    return [stream.outputs for stream in engine().run(PROMPTS[: len(params)], params)]


def constrained(matching: Matching, **params: Any) -> dict[str, Any]:
    defaults = {"temperature": 1.0, "seed": 3, "max_new_tokens": 200, "ignore_eos": False}
    return {**defaults, "logit_bias": closing_bias(), "grammar": matching.grammar, **params}


PLAIN = {"temperature": 0.8, "seed": 5, "max_new_tokens": 20}
FILTERED = {**PLAIN, "top_p": 0.6, "frequency_penalty": 0.5}


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"temperature": 0.0},
        {"top_k": 20, "top_p": 0.9, "min_p": 0.01},
        {"frequency_penalty": 0.4, "repetition_penalty": 1.1},
    ],
    ids=str,
)
def test_an_output_matches_its_grammar(params: dict[str, Any]) -> None:
    for matching in (person(), regex()):
        (ids,) = run(2, [constrained(matching, **params)])
        assert ids[-1] == 2 and matching.matches(text_of(ids))


def test_the_other_rows_of_a_step_are_those_of_a_run_without() -> None:
    params = [constrained(person()), PLAIN, FILTERED, constrained(regex())]
    mixed = run(2, params)
    assert mixed == run(1, params)
    alone = run(2, [PLAIN | {"max_new_tokens": 1}, PLAIN, FILTERED])
    assert mixed[1:3] == alone[1:3]
    assert person().matches(text_of(mixed[0])) and regex().matches(text_of(mixed[3]))


def test_a_retraction_changes_nothing() -> None:
    params = [constrained(person()), PLAIN, FILTERED, constrained(regex(), frequency_penalty=0.3)]
    assert run(2, params, test_retract=True) == run(2, params)


def test_log_probabilities_are_those_of_the_raw_logits() -> None:
    plain = SamplingParams(temperature=0.0, logprobs=2)
    result = Ahead().enter(plain, SamplingParams(temperature=0.0, logprobs=2, grammar=regex("[ab]{4}").grammar)).wait()
    rows = dict(result.logprobs)
    assert rows[0].logprob == rows[0].top[0][1]
    # The model alone would have chosen another token.
    assert rows[1].logprob < rows[1].top[1][1]


class Ahead:
    """Launches steps without waiting, as the worker's core does."""

    def __init__(self) -> None:
        runner = engine().runner
        assert isinstance(runner, ModelRunner)
        runner.reset()
        self.runner = runner
        self.feeder = StepFeeder(runner)
        self.number = 0

    def launch(self, **parts: Any) -> DeviceStep:
        self.number += 1
        fields = {"release": b"", "enter": [], "pages": b"", "chunks": [], "decode": True, **parts}
        return self.runner.launch(Step(WORKER, self.number, **fields), SCHEDULER)

    def enter(self, *params: SamplingParams) -> DeviceStep:
        frames = [self.feeder.enter(slot, PROMPTS[slot], 40, one) for slot, one in enumerate(params)]
        chunks = [Chunk(slot, len(PROMPTS[slot]), True) for slot in range(len(params))]
        return self.launch(enter=frames, chunks=chunks)


def ids_of(result: StepResult) -> list[int]:
    return unpack_ids(result.ids)


def test_constrained_rows_are_sampled_when_the_ids_before_them_are_known() -> None:
    ahead = Ahead()
    first = ahead.enter(SamplingParams(temperature=0.0), SamplingParams(temperature=0.0, grammar=regex("abc").grammar))
    second = ahead.launch()
    assert first.constrained is not None and first.constrained._ids is None
    assert second.constrained is not None and second.constrained._part is None
    beginning = ids_of(first.wait())
    assert second.is_done() and second.constrained._part is not None
    ids = [beginning[1], ids_of(second.wait())[1]]
    assert text_of(ids) == "abc"[: len(text_of(ids))]


def test_a_launch_samples_what_waits_first() -> None:
    ahead = Ahead()
    grammar = regex("[a-d]{30}").grammar
    steps = [ahead.enter(SamplingParams(temperature=1.0, seed=4, grammar=grammar)), *(ahead.launch() for _ in range(6))]
    ids = [ids_of(step.wait())[0] for step in steps]
    assert set(text_of(ids)) <= set("abcd")


def test_an_id_of_a_sequence_that_has_left_reaches_no_other() -> None:
    ahead = Ahead()
    params = SamplingParams(temperature=0.0, grammar=regex("a{9}b{9}").grammar)
    ahead.enter(params).wait()
    surplus = ahead.launch()
    enter = ahead.feeder.enter(0, PROMPTS[1], 40, SamplingParams(temperature=0.0, grammar=regex("[cd]{20}").grammar))
    steps = [
        ahead.launch(release=b"\0\0\0\0", enter=[enter], chunks=[Chunk(0, len(PROMPTS[1]), True)], decode=False),
        *(ahead.launch() for _ in range(3)),
    ]
    surplus.wait()
    ids = [ids_of(step.wait())[0] for step in steps]
    assert set(text_of(ids)) <= set("cd")


def test_a_grammar_that_fails_ends_its_row_alone() -> None:
    ahead = Ahead()
    broken = SamplingParams(temperature=0.0, grammar=regex("(").grammar)
    plain = SamplingParams(temperature=0.0)
    result = ahead.enter(plain, broken, plain).wait()
    ((row, why),) = result.grammar_errors
    assert row == 1 and why and not result.bad_rows
    alone = Ahead().enter(plain, plain, plain).wait()
    assert ids_of(alone)[::2] == ids_of(result)[::2]


def test_a_shortage_of_memory_fails_the_constrained_rows_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    ahead = Ahead()
    step = ahead.enter(SamplingParams(temperature=0.0), SamplingParams(temperature=0.0, grammar=regex().grammar))

    def fail(*arguments: Any) -> None:
        raise torch.OutOfMemoryError("made to fail")

    monkeypatch.setattr(ahead.runner._model.sampler, "sample", fail)
    result = step.wait()
    assert [row for row, _ in result.grammar_errors] == [1] and "memory" in result.grammar_errors[0][1]


def test_rows_without_grammars_take_the_path_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        raise AssertionError("a batch without grammars is split")

    monkeypatch.setattr(np, "setdiff1d", fail)
    assert run(2, [PLAIN, FILTERED])
