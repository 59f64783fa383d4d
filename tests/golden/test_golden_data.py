"""The recorded data is whole: shapes, ids in range, prompts as they stand in prompts.py, the tiny tokenizer usable."""

import json
import sys
from pathlib import Path

import pytest
from safetensors import safe_open
from tokenizers import Tokenizer

FOLDER = Path(__file__).parent
MODELS = ["qwen3", "qwen2", "llama", "llama_tied", "mistral"]

sys.path.insert(0, str(FOLDER))
from prompts import PROMPTS  # noqa: E402


@pytest.mark.parametrize("name", MODELS)
def test_tiny_models_are_whole(name):
    folder = FOLDER / "models" / name
    config = json.loads((folder / "config.json").read_text())
    records = json.loads((folder / "oracle.json").read_text())["prompts"]
    assert [len(record["prompt_ids"]) for record in records] == [1, 2, 17, 33, 96, 200]
    for record in records:
        assert len(record["output_ids"]) == len(record["margins"]) == 24
        assert all(0 <= token < config["vocab_size"] for token in record["prompt_ids"] + record["output_ids"])
        assert min(record["margins"]) > 1e-3
    names = set()
    for path in folder.glob("*.safetensors"):
        assert path.stat().st_size < 1_000_000
        with safe_open(path, framework="numpy") as tensors:
            names |= set(tensors.keys())
    assert ("lm_head.weight" in names) is not config["tie_word_embeddings"]
    assert any(name.endswith("k_proj.bias") for name in names) is (name == "qwen2")
    assert any(name.endswith("k_norm.weight") for name in names) is (name == "qwen3")


def test_recorded_prompts_are_those_of_the_list():
    records = json.loads((FOLDER / "smollm2_oracle.json").read_text())["prompts"]
    assert [record["name"] for record in records] == [prompt.name for prompt in PROMPTS]
    for record, prompt in zip(records, PROMPTS, strict=True):
        messages = [{"role": role, "content": content} for role, content in prompt.messages] or None
        assert record["messages"] == messages
        assert messages is not None or record["text"] == prompt.text
        assert len(record["output_ids"]) == len(record["margins"]) == 64
        eos_at = record["eos_at"]
        assert eos_at == (record["output_ids"].index(2) if 2 in record["output_ids"] else None)


def test_tiny_tokenizer_keeps_any_text():
    tokenizer = Tokenizer.from_file(str(FOLDER / "models" / "qwen3" / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == 512
    assert tokenizer.token_to_id("<|im_end|>") == 2
    for prompt in PROMPTS:
        assert tokenizer.decode(tokenizer.encode(prompt.text).ids) == prompt.text
    assert tokenizer.encode("<|im_start|>user\n").ids[0] == 1
