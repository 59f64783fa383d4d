"""Incremental decoding against the library's decoding of everything at once, for each family of tokenizers."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from detok_proc.incremental import DecoderFactory, PieceDecoder, WindowDecoder
from detok_proc.vocabulary import Family
from quartet.wire.errors import ModelError

LOST_CHARACTERS = "\x04\x06\x13\x14\x16\x1d"
"""Characters whose byte has no token in SmolLM2's vocabulary; every implementation drops it. The lead bytes of the
unassigned planes from U+40000 on have none either."""
SCRIPTS = st.text(
    st.one_of(
        st.characters(min_codepoint=1, max_codepoint=0x24F),
        st.sampled_from("漢字かなカナ한국어العربيةไทยहिन्दी😀👩‍🚀🇩🇪\n\t  "),
        st.characters(exclude_categories=("Cs",), max_codepoint=0x3FFFF),
    ).filter(lambda character: character not in LOST_CHARACTERS),
    max_size=40,
)


def incremental(factory: DecoderFactory, ids: list[int], tail: list[int] = [], skip: bool = True) -> str:  # noqa: B006
    """Return the text of `ids`, one after the other; fails on half characters."""
    decoder = factory.make(tail, skip)
    return "".join([decoder.push(token) for token in ids]) + decoder.flush()


@settings(max_examples=150, deadline=None)
@given(text=SCRIPTS)
def test_mixed_scripts_round_trip_on_smollm2(smollm2_folder: Path, text: str) -> None:
    tokenizer, factory = _loaded(smollm2_folder)
    assert incremental(factory, tokenizer.encode(text).ids, skip=False) == text


@settings(max_examples=150, deadline=None)
@given(ids=st.lists(st.integers(0, 49151), max_size=30), skip=st.booleans())
def test_any_ids_of_smollm2_decode_as_the_library_does(smollm2_folder: Path, ids: list[int], skip: bool) -> None:
    tokenizer, factory = _loaded(smollm2_folder)
    assert incremental(factory, ids, skip=skip) == tokenizer.decode(ids, skip_special_tokens=skip)


@settings(max_examples=100, deadline=None)
@given(ids=st.lists(st.integers(0, 265), max_size=20), skip=st.booleans())
def test_any_ids_of_a_byte_level_tokenizer(byte_level_folder: Path, ids: list[int], skip: bool) -> None:
    tokenizer, factory = _loaded(byte_level_folder)
    assert incremental(factory, ids, skip=skip) == tokenizer.decode(ids, skip_special_tokens=skip)


@settings(max_examples=100, deadline=None)
@given(text=st.text("helo wrdtim,é漢😀", max_size=20))
def test_texts_of_a_sentencepiece_tokenizer(sentencepiece_folder: Path, text: str) -> None:
    tokenizer, factory = _loaded(sentencepiece_folder)
    assert factory.vocabulary.family is Family.SENTENCEPIECE
    assert incremental(factory, tokenizer.encode(text).ids) == text


@settings(max_examples=60, deadline=None)
@given(text=st.text("helo wé漢😀", min_size=1, max_size=12), data=st.data())
def test_the_general_path_agrees_with_the_fast_one(sentencepiece_folder: Path, text: str, data: st.DataObject) -> None:
    tokenizer, factory = _loaded(sentencepiece_folder)
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    cut = data.draw(st.integers(0, len(ids)))
    slow = WindowDecoder(lambda window: tokenizer.decode(window), ids[:cut])
    fast = factory.make(ids[:cut], True)
    slow_text = "".join([slow.push(token) for token in ids[cut:]]) + slow.flush()
    fast_text = "".join([fast.push(token) for token in ids[cut:]]) + fast.flush()
    whole, before = tokenizer.decode(ids), tokenizer.decode(ids[:cut])
    if not before.endswith("\ufffd"):
        assert fast_text == slow_text == whole[len(before) :]


def test_the_first_space_follows_the_prompt(sentencepiece: DecoderFactory) -> None:
    tokens = {sentencepiece.vocabulary.piece(i): i for i in range(len(sentencepiece.vocabulary))}
    time, hello, bos = tokens[" time"], tokens["hello"], tokens["<s>"]
    assert incremental(sentencepiece, [time], tail=[bos, hello]) == " time"
    assert incremental(sentencepiece, [time], tail=[]) == "time"
    assert incremental(sentencepiece, [time], tail=[hello, bos]) == "time"


def test_a_character_begun_in_the_prompt_is_completed(byte_level: DecoderFactory) -> None:
    half = {byte_level.token_text(i)[1]: i for i in range(256)}
    assert incremental(byte_level, [half[b"\xa9"]], tail=[half[b"\xc3"]]) == "é"


def test_text_never_ends_inside_a_character(byte_level: DecoderFactory) -> None:
    by_byte = {byte_level.token_text(i)[1]: i for i in range(256)}
    decoder = byte_level.make([], True)
    pushed = [decoder.push(by_byte[bytes([byte])]) for byte in "😀".encode()]
    assert pushed == ["", "", "", "😀"]


def test_special_tokens_are_skipped_only_if_asked(byte_level: DecoderFactory) -> None:
    end = max(byte_level.vocabulary.special_ids)
    assert incremental(byte_level, [end]) == ""
    assert incremental(byte_level, [end], skip=False) == "<|end|>"


def test_ids_beyond_the_vocabulary_are_empty(byte_level: DecoderFactory) -> None:
    assert incremental(byte_level, [10**6]) == ""


def test_an_unknown_decoder_takes_the_general_path(wordpiece_folder: Path) -> None:
    tokenizer, factory = _loaded(wordpiece_folder)
    assert factory.vocabulary.family is None
    ids = tokenizer.encode("unbelievable hello world!").ids
    assert not isinstance(factory.make([], True), PieceDecoder)
    assert incremental(factory, ids) == tokenizer.decode(ids)
    assert incremental(factory, ids[3:], tail=ids[:3]) == " hello world !"


def test_a_damaged_tokenizer_is_a_model_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot read"):
        DecoderFactory(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(ModelError, match="not a usable tokenizer"):
        DecoderFactory(tmp_path)


def test_the_process_imports_neither_torch_nor_tokenizers() -> None:
    code = "import sys, detok_proc.process; sys.exit(any(m in sys.modules for m in ('torch', 'tokenizers', 'numpy')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


_LOADED: dict[Path, tuple[Tokenizer, DecoderFactory]] = {}


def _loaded(folder: Path) -> tuple[Tokenizer, DecoderFactory]:
    if folder not in _LOADED:
        _LOADED[folder] = (Tokenizer.from_file(str(folder / "tokenizer.json")), DecoderFactory(folder))
    return _LOADED[folder]


def test_special_tokens_that_are_shown_alone(byte_level_folder: Path, wordpiece_folder: Path) -> None:
    for folder in (byte_level_folder, wordpiece_folder):
        tokenizer, factory = _loaded(folder)
        special = sorted(factory.vocabulary.special_ids)
        for shown in special:
            decoder = factory.make([], True, frozenset([shown]))
            text = "".join(map(decoder.push, special)) + decoder.flush()
            assert text == tokenizer.decode([shown], skip_special_tokens=False) != ""
