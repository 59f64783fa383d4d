"""Real chat templates: their formats are recognised, and what they render of an assistant's calls is read back."""

import json
import random
from pathlib import Path

import pytest

from api_proc.parsing.families import detect
from api_proc.parsing.pieces import CallArguments, CallStart, Content, Reasoning
from api_proc.parsing.tools import Tool
from detok_proc.incremental import DecoderFactory
from quartet.checkpoint import model_folder
from quartet.checkpoint.families import FAMILIES
from quartet.checkpoint.tokenizer_files import eos_token_ids
from quartet.checkpoint.tokenizer_loading import load_tokenizer
from quartet.wire.frames import ChatPrompt
from tests.golden.real_tokenizers import TOKENIZERS, NotThere, fetch
from tokenizer_proc.chat_template import ChatTemplate
from tokenizer_proc.tokenizer import TextEncoder

FORMATS = {
    "qwen3": ("think", "hermes"),
    "qwen": (None, "hermes"),
    "llama3_1": (None, None),
    "gemma3": (None, None),
    "gptoss": ("gpt_oss", "gpt_oss"),
}
ENDS = ("<|im_end|>\n",)
ARGUMENTS = ({}, {"city": 'naïve "東京" \n\\ 😀 <b> & it\'s </tool_call>', "days": [1, -2.5, None, {"x": True}]})


def folder_of(name: str, pytestconfig: pytest.Config) -> Path:
    assert pytestconfig.cache is not None
    try:
        return fetch(name, pytestconfig.cache.mkdir("tokenizers"))
    except NotThere as reason:
        pytest.skip(str(reason))


def template_of(folder: Path) -> str:
    template = model_folder.chat_template(folder, model_folder.read_json(folder / "tokenizer_config.json"))
    assert template is not None
    return template


@pytest.mark.slow
@pytest.mark.parametrize("name", TOKENIZERS)
def test_formats_of_a_real_template(name: str, pytestconfig: pytest.Config) -> None:
    found = detect(template_of(folder_of(name, pytestconfig)))
    assert (found.reasoning and found.reasoning.name, found.tools and found.tools.name) == FORMATS[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, (_, tools) in FORMATS.items() if tools])
@pytest.mark.parametrize("content", ["", "I look:\n\n- there"])
@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_rendered_answer_is_read_back(name: str, content: str, count: int, pytestconfig: pytest.Config) -> None:
    if name == "gptoss" and (count > 1 or (count and content)):
        pytest.skip("the template writes one call, without content")
    folder = folder_of(name, pytestconfig)
    template = ChatTemplate(template_of(folder), TextEncoder(folder).names)
    formats = detect(template_of(folder))
    calls = [("get_weather", each) for each in ARGUMENTS[:count]]
    answer = {
        "role": "assistant",
        "content": content,
        "tool_calls": [
            {"id": f"call0000{at}", "type": "function", "function": {"name": call, "arguments": each}}
            for at, (call, each) in enumerate(calls)
        ],
    }
    if formats.reasoning:
        answer["reasoning_content"] = "They ask\n\nfor it."
    user = {"role": "user", "content": "Weather?"}
    prompt = rendered(template, [user], True)
    output = rendered(template, [user, answer], False).removeprefix(prompt)
    for end in ENDS:
        output = output.removesuffix(end)
    generator = random.Random(1)
    for _ in range(20):
        parser = formats.parser([Tool("get_weather", {})], prompt)
        places = sorted(generator.choices(range(len(output) + 1), k=20))
        pieces = [
            piece
            for start, end in zip([0, *places], [*places, len(output)], strict=True)
            for piece in parser.push(output[start:end])
        ]
        pieces += parser.finish()
        assert "".join(piece.text for piece in pieces if isinstance(piece, Content)) == content
        reasoning = "".join(piece.text for piece in pieces if isinstance(piece, Reasoning))
        assert reasoning == answer.get("reasoning_content", "")
        assert [piece.name for piece in pieces if isinstance(piece, CallStart)] == [call for call, _ in calls]
        for at, (_, arguments) in enumerate(calls):
            texts = [piece.text for piece in pieces if isinstance(piece, CallArguments) and piece.call == at]
            assert json.loads("".join(texts)) == arguments


@pytest.mark.slow
def test_ids_of_gpt_oss_become_reasoning_content_and_a_call(pytestconfig: pytest.Config) -> None:
    """As the processes do it: the detokenizer shows the special tokens that the parser has named, and no others."""
    folder = folder_of("gptoss", pytestconfig)
    tokenizer, formats = load_tokenizer(folder), detect(template_of(folder))
    again = "<|end|><|start|>assistant"
    output = (
        f"<|channel|>analysis<|message|>They ask 「it」.{again}<|channel|>commentary<|message|>I look.{again}"
        '<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"city": "naïve 🎉"}<|endoftext|>'
    )
    ids = tokenizer.encode(output, add_special_tokens=False).ids
    shown = frozenset(tokenizer.token_to_id(mark) for mark in formats.markers) - {None}
    assert len(shown) == 7
    decoder = DecoderFactory(folder).make([], True, shown)
    parser = formats.parser([Tool("get_weather", {})], "<|start|>assistant")
    pieces = [piece for index in ids for piece in parser.push(decoder.push(index))] + parser.finish()
    assert "".join(piece.text for piece in pieces if isinstance(piece, Reasoning)) == "They ask 「it」."
    assert "".join(piece.text for piece in pieces if isinstance(piece, Content)) == "I look."
    assert [piece.name for piece in pieces if isinstance(piece, CallStart)] == ["get_weather"]
    arguments = "".join(piece.text for piece in pieces if isinstance(piece, CallArguments))
    assert json.loads(arguments) == {"city": "naïve 🎉"}
    ends = {tokenizer.token_to_id(end) for end in ("<|return|>", "<|call|>")}
    assert ends <= eos_token_ids(folder, FAMILIES["GptOssForCausalLM"].ends)


def rendered(template: ChatTemplate, messages: list[dict[str, object]], adds_generation_prompt: bool) -> str:
    prompt = ChatPrompt(json.dumps(messages).encode(), None, adds_generation_prompt, False, b"{}")
    return template.render(prompt, lambda value: value)
