"""Every architecture, with random weights made by transformers, token for token, through the torch backend."""

from pathlib import Path

import pytest

from tests.golden.oracles import FOLDER, check_equal, load
from tests.support.local_engine import LocalEngine, make_config

FOLDERS = sorted(path.parent for path in (FOLDER / "models").glob("*/oracle.json"))
TOKENIZER = FOLDER / "models" / "qwen3"


def test_every_architecture_is_here() -> None:
    assert {path.name for path in FOLDERS} >= {"llama", "llama_tied", "mistral", "qwen2", "qwen3"}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_torch_backend(folder: Path) -> None:
    oracles = load(folder / "oracle.json")
    engine = LocalEngine(make_config(folder, tokenizer=TOKENIZER, max_total_tokens=4096))
    prompts = [oracle.prompt_ids for oracle in oracles]
    check_equal(oracles, engine.generate(prompts, 24))
    check_equal(oracles, engine.generate(prompts, 24))
    assert engine.cached_tokens() > 0
    engine.restart(chunked_prefill_size=16, disable_radix_cache=True)
    check_equal(oracles, engine.generate(prompts, 24))
    for oracle in oracles:
        check_equal([oracle], engine.generate([oracle.prompt_ids], 24))
