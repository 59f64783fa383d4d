"""Grammars that begin after the thinking: where the prompt's end puts it, with tags that are special tokens or text."""

from pathlib import Path
from typing import NamedTuple

import pytest
from tokenizer_rig import VOCAB_SIZE
from tokenizers import AddedToken, Tokenizer

from quartet.wire.frames import Grammar
from tests.support.grammar_walk import Walker
from tests.support.tokenizer_folders import write_byte_level
from tokenizer_proc.grammars import GrammarCompiler, load_compiler
from tokenizer_proc.thinking import Thinking, symbols_of, thinking_at_end

END = 264
THINK = Grammar("regex", "[0-9]+", after="</think>", opening="<think>")
CHANNELS = Grammar("regex", "[0-9]+", after="<|channel|>final<|message|>")
ALWAYS = Grammar("regex", "[0-9]+", after="</think>")


class Rig(NamedTuple):
    """A model's compiler, and what reads its grammars."""

    compiler: GrammarCompiler
    walker: Walker

    def accepts(self, grammar: Grammar, state: Thinking, text: str) -> bool:
        return self.walker.accepts(self.compiler.compile(grammar, state), text)


@pytest.fixture(scope="module", params=["text", "added", "special"])
def rig(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Rig:
    """Tags as plain text, as added tokens that are not special (Qwen3), and as special tokens (DeepSeek)."""
    folder = write_byte_level(tmp_path_factory.mktemp("thinking"))
    size = VOCAB_SIZE
    if request.param != "text":
        size = add(folder, ["<think>", "</think>"], is_special=request.param == "special")
    return Rig(load_compiler(folder, size, (END,)), Walker(folder, size, (END,)))


@pytest.fixture(scope="module")
def harmony(tmp_path_factory: pytest.TempPathFactory) -> Rig:
    """Channels, each opened by a special token and named by text."""
    folder = write_byte_level(tmp_path_factory.mktemp("harmony"))
    size = add(folder, ["<|channel|>", "<|message|>", "<|close|>"], is_special=True)
    return Rig(load_compiler(folder, size, (END,)), Walker(folder, size, (END,)))


def add(folder: Path, texts: list[str], is_special: bool) -> int:
    """Add tokens to a tokenizer; returns its size."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens([AddedToken(text, special=is_special, normalized=False) for text in texts])
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer.get_vocab_size(with_added_tokens=True)


@pytest.mark.parametrize(
    ("state", "accepted", "refused"),
    [
        (Thinking.CLOSED, ["12"], ["<think>a</think>12", "a</think>12"]),
        (
            Thinking.OPEN,
            ["a</think>12", "</think>12", "5 < 6 \n{é</think>\n\n12", "a<|thought|></think>\n12"],
            ["12", "a</think>a12", "a</think>\n\n\n12", "a</think>", "a</think>1</think>2"],
        ),
        (
            Thinking.POSSIBLE,
            ["12", "<think>a</think>12", "<think>\n\n</think>\n\n12"],
            ["a</think>12", "a", "<think>12", "<think>a</think>"],
        ),
    ],
)
def test_thinking_with_tags(rig: Rig, state: Thinking, accepted: list[str], refused: list[str]) -> None:
    assert [text for text in accepted if not rig.accepts(THINK, state, text)] == []
    assert [text for text in refused if rig.accepts(THINK, state, text)] == []


def test_a_model_that_always_thinks_begins_within_it(rig: Rig) -> None:
    assert rig.accepts(ALWAYS, Thinking.POSSIBLE, "a</think>12")
    assert not rig.accepts(ALWAYS, Thinking.POSSIBLE, "12")


def test_the_constraint_itself_may_begin_like_the_opening(rig: Rig) -> None:
    grammar = Grammar("regex", "<[a-z]>", after="</think>", opening="<think>")
    assert rig.accepts(grammar, Thinking.POSSIBLE, "<think>a</think><b>")
    assert rig.accepts(grammar, Thinking.POSSIBLE, "<b>")


def test_channels_before_the_final_one(harmony: Rig) -> None:
    before = "<|channel|>analysis<|message|>so the final<|close|><|start|>assistant"
    for text in (
        "<|channel|>final<|message|>12",
        before + "<|channel|>final<|message|>12",
        before + "<|channel|>commentary to=f<|message|>x<|close|><|channel|>final<|message|>12",
    ):
        assert harmony.accepts(CHANNELS, Thinking.POSSIBLE, text), text
    for text in ("12", before, before + "<|channel|>final<|message|>a", "<|channel|>final<|message|>1<|channel|>"):
        assert not harmony.accepts(CHANNELS, Thinking.POSSIBLE, text), text


@pytest.mark.parametrize(
    ("prompt", "state"),
    [
        ("<|assistant|>\n", Thinking.POSSIBLE),
        ("<|assistant|>\n<think>", Thinking.OPEN),
        ("<|assistant|>\n<think>\n", Thinking.OPEN),
        ("<|assistant|>\n<think>\n\n</think>\n\n", Thinking.CLOSED),
        ("what is <think>?<|end|>\n<|assistant|>\n", Thinking.POSSIBLE),
        ("<think>a</think>b<|end|>\n<|assistant|>\n", Thinking.POSSIBLE),
        ("<think>a</think>b<|end|>\n<|assistant|>\n<think>\n", Thinking.OPEN),
        ("", Thinking.POSSIBLE),
    ],
)
def test_the_end_of_the_prompt_decides(prompt: str, state: Thinking) -> None:
    assert thinking_at_end(prompt, THINK) is state
    assert thinking_at_end(prompt, Grammar("regex", "x")) is Thinking.CLOSED


@pytest.mark.parametrize(
    ("prompt", "state"),
    [
        ("<think>\nso far", Thinking.OPEN),
        ("<think>a</think>\n12", Thinking.CLOSED),
        ("12", Thinking.CLOSED),
    ],
)
def test_a_message_that_is_continued(prompt: str, state: Thinking) -> None:
    assert thinking_at_end(prompt, THINK, is_continued=True) is state


def test_text_is_cut_at_the_longest_special_tokens() -> None:
    special = {"<a>": 1, "<a>b": 2, "</s>": 3}
    assert symbols_of("x<a>b<a>c</s>", special) == ["x", 2, 1, "c", 3]
    assert symbols_of("plain", special) == ["plain"] and symbols_of("", special) == []
