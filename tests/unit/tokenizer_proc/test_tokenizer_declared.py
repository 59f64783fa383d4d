"""Tokens that the small files beside tokenizer.json declare: prompts, the ends of answers, and what is shown.

The expected ids are those of transformers 5.23, except that a damaged file is refused.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizer_rig import MakeCore
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from detok_proc.incremental import DecoderFactory
from quartet.checkpoint.tokenizer_files import eos_token_ids
from quartet.wire.errors import ModelError
from quartet.wire.frames import ChatPrompt, Encode, Encoded, EncodeFailed, SamplingParams, TextPrompt, unpack_ids
from tokenizer_proc.core import TokenizerCore
from tokenizer_proc.tokenizer import TextEncoder

WORDS = ["<unk>", "<s>", "</s>", "use", "now", "hello", "<", ">", "/", "s", "tool"]
TOOL = len(WORDS)
"""The first id after the vocabulary."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tokenizer whose special tokens are ordinary words of the vocabulary: only other files say what they are."""
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("isolated")]
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def write(folder: Path, name: str, content: Any) -> None:
    (folder / name).write_text(json.dumps(content))


def encoded(folder: Path, text: str) -> list[int]:
    return TextEncoder(folder).encode_text(text)


def shown(folder: Path, ids: list[int], skip: bool = True) -> str:
    """Return what a stream shows of `ids`."""
    decoder = DecoderFactory(folder).make([], skip)
    return "".join([decoder.push(index) for index in ids]) + decoder.flush()


def test_special_tokens_map_names_tokens(folder: Path) -> None:
    assert encoded(folder, "hello</s>") == [5, 6, 8, 9, 7]
    write(folder, "special_tokens_map.json", {"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}})
    assert encoded(folder, "hello</s>") == [5, 2]
    assert TextEncoder(folder).names.tokens == {"bos_token": "<s>", "eos_token": "</s>"}
    assert eos_token_ids(folder) == {2}
    assert (shown(folder, [5, 2]), shown(folder, [5, 2], skip=False)) == ("hello", "hello </s>")


def test_a_bos_of_special_tokens_map_is_put_before_text(folder: Path) -> None:
    write(folder, "special_tokens_map.json", {"bos_token": "<s>"})
    write(folder, "tokenizer_config.json", {"add_bos_token": True})
    assert encoded(folder, "hello") == [1, 5]


def test_every_named_token_reaches_the_template(folder: Path) -> None:
    names = {"sep_token": "use", "cls_token": "now", "mask_token": "s", "pad_token": "<s>", "image_token": "tool"}
    write(
        folder, "tokenizer_config.json", {**names, "extra_special_tokens": {"video_token": "hello"}, "bos_token": None}
    )
    assert TextEncoder(folder).names.tokens == {**names, "video_token": "hello"}


def test_the_class_of_the_tokenizer_implies_names(folder: Path) -> None:
    write(folder, "tokenizer_config.json", {"tokenizer_class": "LlamaTokenizerFast", "unk_token": None})
    assert TextEncoder(folder).names.tokens == {"bos_token": "<s>", "eos_token": "</s>"}
    write(folder, "tokenizer_config.json", {"tokenizer_class": "Qwen2Tokenizer"})
    assert TextEncoder(folder).names.tokens == {}


def test_added_tokens_of_every_file_get_the_ids_of_transformers(folder: Path) -> None:
    write(folder, "added_tokens.json", {"<tool>": TOOL, "<turn>": TOOL + 1})
    write(folder, "special_tokens_map.json", {"additional_special_tokens": ["<turn>", "<new>"], "eos_token": "<turn>"})
    assert encoded(folder, "use <tool> now <turn><new>") == [3, TOOL, 4, TOOL + 1, TOOL + 2]
    assert eos_token_ids(folder) == {TOOL + 1}
    assert shown(folder, [TOOL, TOOL + 1, TOOL + 2]) == "<tool>"
    write(folder, "tokenizer_config.json", {"added_tokens_decoder": {}})
    assert TOOL not in encoded(folder, "use <tool> now"), "added_tokens_decoder takes the place of the older files"


def test_added_tokens_decoder_replaces_flags_and_adds_in_the_order_of_ids(folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens([AddedToken("<tool>", special=False)])
    tokenizer.save(str(folder / "tokenizer.json"))
    entries = {
        "99": {"content": "<b>"},
        "12": {"content": "<a>", "special": True},
        "11": {"content": "<tool>", "special": True},
    }
    write(folder, "tokenizer_config.json", {"added_tokens_decoder": entries, "eos_token": "<c>", "pad_token": "<tool>"})
    assert encoded(folder, "<tool><a><b><c>") == [TOOL, TOOL + 1, TOOL + 2, TOOL + 3]
    assert eos_token_ids(folder) == {TOOL + 3}
    assert shown(folder, [TOOL, TOOL + 1, TOOL + 2, TOOL + 3]) == "<b>"


def test_text_without_special_tokens_if_the_tokenizer_says_so(folder: Path) -> None:
    write(folder, "special_tokens_map.json", {"eos_token": "</s>"})
    write(folder, "tokenizer_config.json", {"split_special_tokens": True})
    assert encoded(folder, "hello</s>") == [5, 6, 8, 9, 7]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer_config.json", {"eos_token": 2}),
        ("tokenizer_config.json", {"eos_token": {"text": "</s>"}}),
        ("tokenizer_config.json", {"added_tokens_decoder": ["<tool>"]}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": {"content": "<tool>"}}}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"11": "<tool>"}}),
        ("special_tokens_map.json", {"additional_special_tokens": "<tool>"}),
        ("special_tokens_map.json", {"bos_token": ["<s>"]}),
        ("added_tokens.json", {"<tool>": "11"}),
    ],
)
def test_a_declaration_that_says_nothing_is_refused(folder: Path, name: str, content: Any) -> None:
    write(folder, name, content)
    for load in (TextEncoder, DecoderFactory):
        with pytest.raises(ModelError, match=name.split("_")[0] if "decoder" in str(content) else str(folder)):
            load(folder)


def test_an_end_that_the_tokenizer_does_not_have_is_refused(folder: Path) -> None:
    write(folder, "tokenizer_config.json", {"added_tokens_decoder": {}})
    write(folder, "special_tokens_map.json", {"eos_token": "<|end|>"})
    with pytest.raises(ModelError, match=r"eos_token '<\|end\|>'"):
        eos_token_ids(folder)


def job(prompt: Any) -> Encode:
    return Encode(1, "api-0", prompt, SamplingParams())


def test_an_added_token_beyond_the_vocabulary_fails_its_request_alone(folder: Path, make_core: MakeCore) -> None:
    write(folder, "added_tokens.json", {"<tool>": TOOL})
    template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    core: TokenizerCore = make_core(folder, vocab_size=TOOL, chat_template=template)
    found = core.answer(job(TextPrompt("use <tool> now")))
    assert isinstance(found, EncodeFailed)
    assert (found.status, found.param) == (400, "prompt") and f"Token id {TOOL}" in found.message
    found = core.answer(job(ChatPrompt(json.dumps([{"role": "user", "content": "use <tool> now"}]).encode())))
    assert isinstance(found, EncodeFailed) and (found.status, found.param) == (400, "messages")
    found = core.answer(job(TextPrompt("use now")))
    assert isinstance(found, Encoded) and unpack_ids(found.ids) == [3, 4]


def test_a_token_of_the_model_itself_beyond_the_vocabulary_is_refused_at_start(
    folder: Path, make_core: MakeCore
) -> None:
    write(folder, "special_tokens_map.json", {"bos_token": "<turn>"})
    write(folder, "tokenizer_config.json", {"add_bos_token": True})
    with pytest.raises(ModelError, match=f"id {TOOL}"):
        make_core(folder, vocab_size=TOOL, chat_template=None)
    write(folder, "tokenizer_config.json", {})
    with pytest.raises(ModelError, match="<turn>"):
        make_core(folder, vocab_size=TOOL, chat_template="<turn>{{ messages[0].content }}")
    assert make_core(folder, vocab_size=TOOL + 1, chat_template="<turn>{{ messages[0].content }}")
