"""SmolLM2 against transformers on the same GGUF file: greedy ids, alone and together, cached or not, chunked."""

from collections.abc import Iterator

import pytest

from tests.golden.oracles import FOLDER, Oracle, check_equal, check_near, load
from tests.support.local_engine import LocalEngine, make_config

ORACLES = load(FOLDER / "smollm2_oracle.json")
CUT = [oracle for oracle in ORACLES if oracle.name in
       ("one_word", "chat_capital", "scripts", "code_python", "library_late", "library_hours")]  # fmt: skip


@pytest.fixture(scope="module")
def engine() -> Iterator[LocalEngine]:
    yield LocalEngine(make_config("smollm2"))


def run(engine: LocalEngine, oracles: list[Oracle], new_tokens: int = 64) -> list[list[int]]:
    return engine.generate([oracle.prompt_ids for oracle in oracles], new_tokens)


def test_six_prompts_together_then_from_the_cache(engine: LocalEngine) -> None:
    engine.restart(chunked_prefill_size=512)
    check_equal(CUT, run(engine, CUT, 24))
    cached = engine.cached_tokens()
    check_equal(CUT, run(engine, CUT, 24))
    assert engine.cached_tokens() > cached


def test_alone(engine: LocalEngine) -> None:
    engine.restart()
    for oracle in CUT[:3]:
        check_equal([oracle], run(engine, [oracle], 16))


def test_in_chunks_of_16_without_the_tree(engine: LocalEngine) -> None:
    engine.restart(chunked_prefill_size=16, disable_radix_cache=True)
    check_equal(CUT, run(engine, CUT, 12))


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [16, 512])
@pytest.mark.parametrize("is_sharing", [True, False])
def test_all_prompts_together(engine: LocalEngine, chunk: int, is_sharing: bool) -> None:
    engine.restart(chunked_prefill_size=chunk, disable_radix_cache=not is_sharing)
    check_equal(ORACLES, run(engine, ORACLES))
    if is_sharing:
        check_equal(ORACLES, run(engine, ORACLES))


@pytest.mark.slow
@pytest.mark.parametrize("oracle", ORACLES, ids=lambda oracle: oracle.name)
def test_each_prompt_alone(engine: LocalEngine, oracle: Oracle) -> None:
    engine.restart(disable_radix_cache=True)
    check_equal([oracle], run(engine, [oracle]))


@pytest.mark.slow
def test_bfloat16_leaves_the_oracle_only_at_near_ties() -> None:
    engine = LocalEngine(make_config("smollm2", "bfloat16"))
    check_near(ORACLES, run(engine, ORACLES))
