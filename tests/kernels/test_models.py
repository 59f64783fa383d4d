"""Every architecture through the Triton backend, token for token equal to transformers: interpreted, or on the GPU."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.golden.oracles import FOLDER, check_equal, load_for_launch
from tests.support.local_engine import LocalEngine, make_config
from tests.support.quantized_checkpoints import checkpoint

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


def test_linears_of_four_bits_say_what_their_numbers_say(tmp_path: Path) -> None:
    """The same model from codes by the Triton backend, and from the numbers that they mean by torch's."""
    source = FOLDER / "models" / "llama"
    # Integers of 4 bits are packed by 32 columns.
    config = {**json.loads((source / "config.json").read_text()), "intermediate_size": 128}
    plain = {
        name: one[:, :128] if "down_proj" in name else one[:128] if "gate_proj" in name or "up_proj" in name else one
        for name, one in load_file(source / "model.safetensors").items()
    }
    made = checkpoint("gptq_v2_row", {name: one.contiguous() for name, one in plain.items()})
    outputs = []
    for name, extra, weights, backend in (
        ("codes", made.config, made.stored, "triton"),
        ("meant", {}, made.meant, "torch"),
    ):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({**config, **extra}))
        save_file({key: tensor.contiguous() for key, tensor in weights.items()}, folder / "model.safetensors")
        settings = {**SETTINGS, "attention_backend": backend}
        engine = LocalEngine(make_config(folder, dtype="float32", max_total_tokens=512, **settings))
        outputs.append(engine.generate([[5, 6, 7], list(range(3, 40))], 3))
    assert outputs[0] == outputs[1]
