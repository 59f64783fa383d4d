"""Every kind of request under random deaths, freezes and absences, in memory: exact, and nothing is left behind."""

import random

import pytest

from tests.support.request_kinds import SIMULATED, make_engine, prepared
from tests.support.shaking import Shaking, shake

PROMPTS = [[10 + i, 20, 30, *range(40, 40 + 31 * i)] for i in range(5)]
SEEDS = 20


@pytest.mark.parametrize("kind", SIMULATED)
def test_a_kind(kind: str) -> None:
    made, expected = prepared(kind, SIMULATED, PROMPTS)
    for seed in range(SEEDS):
        chance = random.Random(f"{kind} {seed}")
        engine = make_engine(kind, chance)
        try:
            for history in shake(engine, made, expected, chance, Shaking()):
                history.check()
            engine.check_nothing_left()
        except Exception:
            print(f"seed {kind!r} {seed}")
            raise
