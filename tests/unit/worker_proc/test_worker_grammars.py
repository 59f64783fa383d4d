"""The worker's grammars without a model: the compiler and what it keeps, matchers of slots, masks and their limits."""

import json
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from llguidance import LLMatcher, LLTokenizer
from numpy.typing import NDArray

from quartet.checkpoint.grammar_tokenizer import load_grammar_tokenizer
from quartet.wire.config import Config, ResolvedModel
from quartet.wire.frames import Enter, Grammar, SamplingParams
from tests.support.grammars import PERSON, person, regex, tiny_tokenizer
from worker_proc.grammar.compiler import GrammarCompiler
from worker_proc.grammar.slots import GrammarSlots, is_allowed
from worker_proc.slots import Entered

VOCAB, EOS = 512, 2
TOKENIZER = tiny_tokenizer()


def make_compiler(**limits: int) -> GrammarCompiler:
    return GrammarCompiler(lambda: TOKENIZER, **limits)


def make_slots(compiler: GrammarCompiler | None = None) -> GrammarSlots:
    return GrammarSlots(compiler or make_compiler(), 8, VOCAB)


def entered(slot: int, grammar: Grammar | None, output: list[int] | None = None) -> Entered:
    ids = np.array([7, 8, *(output or [])])
    return Entered(slot, ids, Enter(slot, 0, b"", 2, 0, b"", SamplingParams(grammar=grammar), 0))


def allowed(slots: GrammarSlots, slot: int) -> NDArray[np.int64]:
    masks = slots.masks(slots.at(np.array([slot])))
    return np.flatnonzero(is_allowed(masks, VOCAB)[0])


def follow(slots: GrammarSlots, slot: int, text: str) -> list[int]:
    """Advance a slot by the ids of a text, each of which must be allowed."""
    ids = TOKENIZER.tokenize_str(text)
    for token in ids:
        assert token in allowed(slots, slot)
        slots.at(np.array([slot]))[0].take(token)
    return ids


def test_a_mask_allows_what_matches_and_the_end_at_the_end_alone() -> None:
    slots = make_slots()
    slots.enter(entered(3, person().grammar))
    text = json.dumps({"name": "Ann", "age": 35, "tags": ["old"]})
    assert EOS not in allowed(slots, 3) and TOKENIZER.tokenize_str("z")[0] not in allowed(slots, 3)
    follow(slots, 3, text)
    assert allowed(slots, 3).tolist() == [EOS]
    slots.at(np.array([3]))[0].take(EOS)
    # The surplus row of a sequence that has just ended.
    assert allowed(slots, 3).tolist() == [EOS]


def test_a_replay_of_the_output_has_the_mask_of_the_first_run() -> None:
    slots = make_slots()
    slots.enter(entered(0, person().grammar))
    ids = follow(slots, 0, '{"name": "Ann", "age": 1')
    slots.enter(entered(1, person().grammar, ids))
    assert allowed(slots, 0).tolist() == allowed(slots, 1).tolist()


def test_rows_without_a_grammar_are_not_constrained() -> None:
    slots = make_slots()
    rows = np.array([5, 1, 3])
    assert slots.rows(rows).tolist() == []
    slots.enter(entered(1, regex().grammar))
    slots.enter(entered(3, None))
    assert slots.rows(rows).tolist() == [1]
    slots.enter(entered(1, None))
    assert slots.rows(rows).tolist() == []
    slots.enter(entered(5, regex().grammar))
    slots.clear()
    assert slots.rows(rows).tolist() == []


def test_many_masks_are_computed_as_one_by_one() -> None:
    slots = make_slots()
    for slot in range(8):
        slots.enter(entered(slot, (person() if slot % 2 else regex(f"a{{{slot + 1}}}b")).grammar))
    together = slots.masks(slots.at(np.arange(8)))
    for slot in range(8):
        assert np.array_equal(together[slot], slots.masks(slots.at(np.array([slot])))[0])


def test_a_grammar_that_fails_fails_alone() -> None:
    slots = make_slots()
    for slot in range(4):
        slots.enter(entered(slot, regex("ab+").grammar, TOKENIZER.tokenize_str("zzz") if slot == 2 else []))
    grammars = slots.at(np.arange(4))
    masks = slots.masks(grammars)
    assert [bool(grammar.error) for grammar in grammars] == [False, False, True, False]
    assert np.array_equal(masks[0], masks[3]) and masks.any(axis=1).all()


@pytest.mark.parametrize(
    ("grammar", "why"),
    [(Grammar("llguidance", "garbage {"), "rule_name"), (Grammar("json_object", ""), "kind json_object")],
)
def test_what_is_no_grammar_fails_its_row(grammar: Grammar, why: str) -> None:
    slots = make_slots()
    slots.enter(entered(0, grammar))
    grammars = slots.at(np.array([0]))
    slots.masks(grammars)
    assert why in grammars[0].error


def test_a_tokenizer_that_cannot_be_loaded_fails_the_row(tmp_path: Path) -> None:
    config = Config(resolved=ResolvedModel(str(tmp_path), "none", "none", VOCAB, 99, (EOS,)))
    slots = make_slots(GrammarCompiler(partial(load_grammar_tokenizer, config)))
    slots.enter(entered(0, regex().grammar))
    grammars = slots.at(np.array([0]))
    slots.masks(grammars)
    assert "tokenizer.json" in grammars[0].error


def test_ids_beyond_the_tokenizer_are_not_allowed() -> None:
    wide = tiny_tokenizer(VOCAB + 77)
    slots = GrammarSlots(GrammarCompiler(lambda: wide), 8, VOCAB + 77)
    slots.enter(entered(0, regex(".*").grammar))
    found = np.flatnonzero(is_allowed(slots.masks(slots.at(np.array([0]))), VOCAB + 77)[0])
    assert found.max() < VOCAB and len(found) > 100


def test_a_grammar_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = make_compiler()
    first = compiler.matcher("start: /a+/")
    assert compiler.matcher("start: /a+/") is first


@pytest.mark.parametrize("limits", [{"max_grammars": 2}, {"max_source_bytes": 30}])
def test_the_least_recently_used_grammar_is_dropped(limits: dict[str, int]) -> None:
    compiler = make_compiler(**limits)
    sources = [f"start: /{char}+/" for char in "abc"]
    first, second = compiler.matcher(sources[0]), compiler.matcher(sources[1])
    assert compiler.matcher(sources[0]) is first
    compiler.matcher(sources[2])
    assert compiler.matcher(sources[0]) is first
    assert compiler.matcher(sources[1]) is not second


def test_a_grammar_is_compiled_ahead_and_reported_once() -> None:
    compiler = make_compiler()
    compiler.compile_ahead(b"1", "start: /a+/")
    compiler.compile_ahead(b"2", "garbage {")
    compiler.compile_ahead(b"3", "start: /a+/")
    (one, two, three) = sorted(compiler.take_compiled())
    assert one == (b"1", "") and three == (b"3", "") and two[0] == b"2" and "rule_name" in two[1]
    assert compiler.take_compiled() == [] and not compiler.is_busy


def test_a_thread_compiles_ahead_and_a_slot_waits_for_it() -> None:
    def load() -> LLTokenizer:
        time.sleep(0.1)
        return TOKENIZER

    compiler = GrammarCompiler(load)
    compiler.start_thread()
    compiler.compile_ahead(b"1", "start: /a+/")
    assert compiler.take_compiled() == [] and compiler.is_busy
    assert compiler.matcher("start: /a+/").matcher is not None
    assert compiler.take_compiled() == [(b"1", "")]


HOSTILE = {
    "repeats": {"pattern": "^(((a{1,99}){1,99}){1,99}){1,99}$"},
    "ambiguous": {"pattern": "^(a|aa|aaa|[ab]{1,40})*c{1,90}.{0,400}(x|y)?z$"},
    "many states": {"pattern": "^.*a.{0,200}b.{0,200}c.*$"},
    "many keys": {"type": "object", "properties": {f"k{i}": {"type": "string"} for i in range(400)}},
    "deep": {"anyOf": [{"type": "array", "items": {"anyOf": [{"$ref": "#"}, PERSON]}, "minItems": 9}, PERSON]},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_mask_of_a_hostile_schema_is_bounded_in_time(name: str) -> None:
    """Either the grammar is refused, or each of its masks takes less than a step may wait for."""
    schema = {"type": "string", **HOSTILE[name]} if "pattern" in HOSTILE[name] else HOSTILE[name]
    slots = make_slots()
    slots.enter(entered(0, Grammar("llguidance", LLMatcher.grammar_from_json_schema(schema))))
    (grammar,) = slots.at(np.array([0]))
    longest_s = 0.0
    for _ in range(60):
        began_s = time.thread_time()
        ids = allowed(slots, 0)
        longest_s = max(longest_s, time.thread_time() - began_s)
        if grammar.error or ids[0] == EOS:
            break
        grammar.take(int(ids[len(ids) // 2]))
    assert longest_s < 2.0
