"""What start-up reads from a model folder, and how it refuses one."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from model_folders import CONFIG, write_folder, write_json

from quartet.checkpoint.resolve import resolve_model
from quartet.wire.config import ModelConfig
from quartet.wire.errors import ConfigError, ModelError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "toy-model")


write = write_json


def resolve(folder: Path, **more: Any) -> Any:
    return resolve_model(ModelConfig(model_path=str(folder), **more))


def test_a_plain_folder(folder: Path) -> None:
    model = resolve(folder)
    assert (model.name, model.folder) == ("toy-model", str(folder))
    assert (model.vocab_size, model.context_length, model.eos_token_ids, model.bos_token_id) == (100, 2048, (2,), 1)
    assert model.chat_template is None and model.default_sampling == {}
    assert resolve(folder, served_model_name="x").name == "x"


def test_every_file_may_name_an_end(folder: Path) -> None:
    write(folder, "generation_config.json", {"eos_token_id": [5, 2], "temperature": 0.6, "top_k": 20, "top_p": None})
    write(folder, "tokenizer_config.json", {"eos_token": {"content": "<|turn|>"}})
    model = resolve(folder)
    assert model.eos_token_ids == (2, 5, 7)
    assert model.default_sampling == {"temperature": 0.6, "top_k": 20}


def test_special_tokens_map_may_name_an_end(folder: Path) -> None:
    write(folder, "special_tokens_map.json", {"eos_token": "<|turn|>"})
    write(folder, "tokenizer_config.json", {"eos_token": None})
    assert resolve(folder).eos_token_ids == (2, 7)


def test_a_word_of_the_vocabulary_may_be_an_end(folder: Path) -> None:
    write(folder, "tokenizer.json", {"model": {"vocab": {"a": 0, "</s>": 9}}})
    write(folder, "tokenizer_config.json", {"eos_token": "</s>"})
    assert resolve(folder).eos_token_ids == (2, 9)


@pytest.mark.parametrize("value", ["2", True, [2, "3"], [None], 2.0])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_an_end_that_is_no_id_is_refused(folder: Path, name: str, value: Any) -> None:
    file = json.loads((folder / "config.json").read_text()) if name == "config.json" else {}
    write(folder, name, {**file, "eos_token_id": value})
    with pytest.raises(ModelError, match=f"/{name} has no usable eos_token_id"):
        resolve(folder)


def test_an_end_outside_the_vocabulary_is_refused(folder: Path) -> None:
    write(folder, "generation_config.json", {"eos_token_id": 100})
    with pytest.raises(ModelError, match="outside its vocabulary of 100"):
        resolve(folder)


def test_the_context_may_be_lowered_but_not_raised(folder: Path) -> None:
    assert resolve(folder, context_length=64).context_length == 64
    with pytest.raises(ConfigError, match="context_length is 2049, but the model's limit is 2048"):
        resolve(folder, context_length=2049)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"model_type": "mistral", "sliding_window": 512}, 512),
        ({"model_type": "mistral", "sliding_window": None}, 2048),
        ({"model_type": "qwen2", "sliding_window": 512, "use_sliding_window": False}, 2048),
    ],
)
def test_a_sliding_window_limits_the_context(folder: Path, change: dict[str, Any], expected: int) -> None:
    write(folder, "config.json", {**CONFIG, **change})
    assert resolve(folder).context_length == expected


@pytest.mark.parametrize("value", [None, 0, -1, "100", True, 1.5])
def test_a_size_that_is_no_size_is_refused(folder: Path, value: Any) -> None:
    write(folder, "config.json", {**CONFIG, "vocab_size": value})
    with pytest.raises(ModelError, match="vocab_size"):
        resolve(folder)


def test_an_unknown_architecture_and_its_code_are_refused(folder: Path) -> None:
    (folder / "evil.py").write_text("raise SystemExit('executed')")
    hostile = {**CONFIG, "architectures": ["EvilModel"], "auto_map": {"AutoConfig": "evil.EvilConfig"}}
    write(folder, "config.json", hostile)
    with pytest.raises(ModelError, match="EvilModel is not supported; supported: LlamaForCausalLM, Mistral"):
        resolve(folder)


def test_chat_templates_are_found_wherever_they_stand(folder: Path, tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    write(folder, "tokenizer_config.json", {"chat_template": named})
    assert resolve(folder).chat_template == "D"
    write(folder, "chat_template.json", {"chat_template": "J"})
    assert resolve(folder).chat_template == "J"
    (folder / "chat_template.jinja").write_text("F")
    assert resolve(folder).chat_template == "F"
    (tmp_path / "own.jinja").write_text("O")
    assert resolve(folder, chat_template=str(tmp_path / "own.jinja")).chat_template == "O"
    with pytest.raises(ConfigError, match="chat_template"):
        resolve(folder, chat_template=str(tmp_path / "none.jinja"))


def test_weights_must_be_there_unless_they_are_dummies(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="safetensors"):
        resolve(folder)
    assert resolve(folder, load_format="dummy").vocab_size == 100
    write(folder, "model.safetensors.index.json", {"weight_map": {"a": "model-00001-of-00002.safetensors"}})
    with pytest.raises(ModelError, match="model-00001-of-00002"):
        resolve(folder)


def test_the_tokenizer_may_be_elsewhere(folder: Path, tmp_path: Path) -> None:
    (folder / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    with pytest.raises(ModelError, match="--tokenizer-path"):
        resolve(folder)
    assert resolve(folder, tokenizer_path=str(tmp_path)).vocab_size == 100


@pytest.mark.parametrize("content", ["{", "[]", "null", '{"architectures": 3}', '{"architectures": []}', "{}"])
def test_a_damaged_config_is_refused_in_one_line(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(ModelError) as caught:
        resolve(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("model", ["/no/such/folder", "./nothing", "a/b/c", "nothing", "~/nothing/x.gguf", "x.gguf"])
def test_what_is_no_model_is_refused(model: str) -> None:
    with pytest.raises(ModelError, match=r"check the path|is neither"):
        resolve_model(ModelConfig(model_path=model))


def test_a_hub_model_without_network_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(
        ModelError, match=r"^some/model at revision v1 is not in the local hub cache and HF_HUB_OFFLINE"
    ):
        resolve_model(ModelConfig(model_path="some/model", revision="v1"))


def test_resolving_imports_nothing_heavy() -> None:
    heavy = ("numpy", "torch", "tokenizers", "gguf", "huggingface_hub", "jinja2")
    code = f"import sys, quartet.checkpoint.resolve; sys.exit(any(m in sys.modules for m in {heavy}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer_config.json", {"chat_template": {"default": "x"}}),
        ("tokenizer_config.json", {"chat_template": 3}),
        ("tokenizer_config.json", {"chat_template": [{"template": "x"}]}),
        ("tokenizer_config.json", {"chat_template": [{"name": "default", "template": None}]}),
        ("chat_template.json", {"chat_template": ["x"]}),
    ],
)
def test_a_chat_template_that_is_no_text_is_refused(folder: Path, name: str, content: Any) -> None:
    write(folder, name, content)
    with pytest.raises(ModelError, match=f"/{name} has no usable chat_template"):
        resolve(folder)


def test_a_chat_template_that_is_not_utf8_is_refused(folder: Path) -> None:
    (folder / "chat_template.jinja").write_bytes(b"caf\xe9")
    with pytest.raises(ModelError, match=r"chat_template.jinja is not UTF-8"):
        resolve(folder)
