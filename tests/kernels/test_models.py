"""Every architecture through the Triton backend, token for token equal to transformers: interpreted, or on the GPU."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.golden.oracles import FOLDER, check_equal, load_for_launch
from tests.support.local_engine import LocalEngine, make_config

FOLDERS = sorted(path.parent for path in (FOLDER / "models").glob("*/oracle.json"))
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Some kinds of layers; a family takes ten seconds to two minutes in the interpreter.
QUICK = {"gemma3", "llama", "olmo2", "phi3", "qwen3_moe"}
BY_NAME = [
    pytest.param(folder, id=folder.name, marks=[] if DEVICE == "cuda" or folder.name in QUICK else [pytest.mark.slow])
    for folder in FOLDERS
]
TOKENIZER = FOLDER / "models" / "qwen3"
SETTINGS: dict[str, Any] = {"tokenizer": TOKENIZER, "device": DEVICE, "attention_backend": "triton"}


@pytest.mark.parametrize("folder", BY_NAME)
def test_triton_backend_interpreted(folder: Path) -> None:
    oracles, context_length = load_for_launch(folder)
    oracles = oracles[:4]
    engine = LocalEngine(make_config(folder, context_length=context_length, max_total_tokens=1024, **SETTINGS))
    engine.restart(chunked_prefill_size=32)
    check_equal(oracles, engine.generate([oracle.prompt_ids for oracle in oracles], 6))


@pytest.mark.slow
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_triton_backend_interpreted_at_length(folder: Path) -> None:
    oracles, context_length = load_for_launch(folder)
    engine = LocalEngine(make_config(folder, context_length=context_length, max_total_tokens=2048, **SETTINGS))
    for chunk in (16, 512):
        engine.restart(chunked_prefill_size=chunk)
        check_equal(oracles, engine.generate([oracle.prompt_ids for oracle in oracles], 24))
