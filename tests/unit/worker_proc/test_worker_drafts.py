"""Rows that a step names: several of one slot, from an earlier position on, on a real decoder and on the simulated."""

from typing import Any

import pytest

from quartet.wire.frames import Step, pack_ids
from scheduler_proc.core import speculation, text_match
from tests.golden.oracles import FOLDER
from tests.support.local_engine import LocalEngine, make_config
from worker_proc.contract import Capacity, StepError
from worker_proc.slots import DECODE, SlotTable

LOOP = ((7, 30.0), (9, 30.0), (11, 29.0))
PARAMS: list[dict[str, Any]] = [
    {"logit_bias": LOOP},
    {"logit_bias": LOOP, "temperature": 0.4, "seed": 3},
    {"logit_bias": LOOP, "temperature": 0.9, "top_p": 0.9, "seed": 4, "min_new_tokens": 20},
]


@pytest.mark.parametrize("params", PARAMS)
def test_a_model_says_the_same_with_drafts(params: dict[str, Any]) -> None:
    prompts = [[5 + (7 * row + at) % 80 for at in range(3 + 11 * row)] for row in range(3)]
    engine = LocalEngine(make_config(FOLDER / "models" / "qwen3", max_total_tokens=2048), max_in_flight=2)
    plain = engine.generate(prompts, 60, **params)
    engine.restart(speculative_tokens=6)
    assert engine.generate(prompts, 60, **params) == plain
    assert 0 < engine.counters()["accepted_tokens"] < engine.counters()["drafted_tokens"]


def test_the_simulated_worker_says_the_same_with_drafts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its text never repeats, so that no draft holds; and it checks what its pages hold."""
    for name in ("START_RATE", "STOP_RATE", "LEAST_RATE"):
        monkeypatch.setattr(speculation, name, 0.0)
    monkeypatch.setattr(text_match, "_GRAM_BYTES", 4)
    engine = LocalEngine(make_config(FOLDER / "models" / "qwen3", simulated_worker=True), max_in_flight=2)
    prompts = [[*range(3, 500)], [5, 6, 7]]
    plain = engine.generate(prompts, 40)
    engine.restart(speculative_tokens=6)
    assert engine.generate(prompts, 40) == plain
    assert engine.counters()["drafted_tokens"] > 0


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([0, 4], "triples"),
        ([1, 4, 9], "does not decode"),
        ([3, 4, 9], "does not decode"),
        ([0, 5, 9, 0, 7, 9], "order"),
        ([2, 5, 9, 0, 5, 9], "order"),
        ([0, 5, 9, 0, 6, -1], "no id"),
        ([0, 0, 9], "context"),
        ([0, 34, 9], "context"),
        ([0, 5, 64], "vocabulary"),
        ([0, 5, -2], "vocabulary"),
    ],
)
def test_rows_that_contradict_the_slots_are_refused(rows: list[int], words: str) -> None:
    table = SlotTable(Capacity(4, 16, 3, 64, 32, "test"))
    table._state[[0, 2]] = DECODE
    with pytest.raises(StepError, match=words):
        table.apply(Step(1, 1, b"", [], b"", [], True, pack_ids(rows)))  # type: ignore[arg-type]
