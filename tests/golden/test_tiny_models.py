"""Every architecture, with random weights made by transformers, token for token, through the torch backend."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from quartet.checkpoint.families import SUPPORTED_ARCHITECTURES
from scheduler_proc.core.checkpoints import Spacing
from tests.golden.oracles import FOLDER, check_equal, load, load_for_launch
from tests.support.local_engine import LocalEngine, make_config

FOLDERS = sorted(path.parent for path in (FOLDER / "models").glob("*/oracle.json"))
CLOSE = Spacing(16, 16)
"""The tiny folders' prompts are short."""
TOKENIZER = FOLDER / "models" / "qwen3"


def test_every_architecture_is_here() -> None:
    configs = [json.loads((folder / "config.json").read_text()) for folder in FOLDERS]
    assert {config["architectures"][0] for config in configs} == set(SUPPORTED_ARCHITECTURES)


@pytest.mark.parametrize(
    ("folder", "is_long"),
    [(folder, False) for folder in FOLDERS] + [(FOLDER / "models" / "phi3_longrope", True)],
    ids=lambda value: value.name if isinstance(value, Path) else "long" if value else "",
)
def test_torch_backend(folder: Path, is_long: bool) -> None:
    oracles, context_length = load_for_launch(folder)
    if is_long:
        oracles = [one for one in load(folder / "oracle.json") if len(one.prompt_ids) > context_length]
        context_length = 0
    config = make_config(folder, tokenizer=TOKENIZER, context_length=context_length, max_total_tokens=4096)
    engine = LocalEngine(config, spacing=CLOSE)
    prompts = [oracle.prompt_ids for oracle in oracles]
    has_states = engine.runner.capacity.has_states
    # Where prompts have parted their states are saved the second time.
    for _ in range(2 + has_states):
        check_equal(oracles, engine.generate(prompts, 24))
    assert engine.cached_tokens() > 0
    engine.restart(chunked_prefill_size=16, disable_radix_cache=True)
    check_equal(oracles, engine.generate(prompts, 24))
    for oracle in oracles:
        check_equal([oracle], engine.generate([oracle.prompt_ids], 24))
    engine.restart(test_retract=True)
    check_equal(oracles, engine.generate(prompts, 24))
    assert engine.retractions() > 0 or len(oracles) == 1
    engine.restart()
    check_equal(oracles, engine.generate(prompts, 24, worker_lives=(40,)))


@pytest.mark.parametrize("name", ["qwen3_5", pytest.param("qwen3_5_moe", marks=pytest.mark.slow)])
def test_sequences_that_start_from_checkpoints_of_states(name: str) -> None:
    """CKP-1 to CKP-5 token for token: prompts that go on from outputs, in chunks, retracted, after a worker's death."""
    folder = FOLDER / "models" / name
    oracles = load(folder / "oracle.json")
    settings = {"tokenizer": TOKENIZER, "max_total_tokens": 16384}
    engine = LocalEngine(make_config(folder, **settings), max_in_flight=2, spacing=CLOSE)
    assert engine.runner.capacity.checkpoints == 24
    turns = [oracle.prompt_ids + oracle.output_ids[:count] for oracle in oracles for count in (0, 3, 20, 17)]
    rest = [oracle.output_ids[count : count + 4] for oracle in oracles for count in (0, 3, 20, 17)]
    whole = [oracle.prompt_ids for oracle in oracles]
    check_equal(oracles, engine.generate(whole, 24))
    assert engine.generate(turns, 4) == rest
    assert engine.cached_tokens() > 200
    for changes in ({"chunked_prefill_size": 16}, {"test_retract": True}, {"schedule_policy": "fcfs"}):
        engine.restart(**changes)
        check_equal(oracles, engine.generate(whole, 24))
        assert engine.generate(turns, 4, worker_lives=(40,)) == rest
        assert engine.generate(turns, 4) == rest
        assert engine.cached_tokens() > 200


def test_the_text_part_of_a_checkpoint_with_images(tmp_path: Path) -> None:
    """Names and nesting as Qwen3_5ForConditionalGeneration saves them."""
    source = FOLDER / "models" / "qwen3_5"
    text = json.loads((source / "config.json").read_text())
    whole = {"architectures": ["Qwen3_5ForConditionalGeneration"], "model_type": "qwen3_5", "text_config": text}
    (tmp_path / "config.json").write_text(json.dumps({**whole, "vision_config": {"depth": 1}, "image_token_id": 5}))
    tensors = load_file(source / "model.safetensors")
    named = {name.replace("model.", "model.language_model.", 1): one for name, one in tensors.items()}
    save_file({**named, "model.visual.patch_embed.proj.weight": torch.ones(2), "mtp.fc.weight": torch.ones(2)},
              tmp_path / "model.safetensors")  # fmt: skip
    oracles = load(source / "oracle.json")[:3]
    engine = LocalEngine(make_config(tmp_path, tokenizer=TOKENIZER, max_total_tokens=1024))
    check_equal(oracles, engine.generate([oracle.prompt_ids for oracle in oracles], 24))


@pytest.mark.slow
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_triton_in_its_interpreter(folder: Path) -> None:
    pytest.importorskip("triton")
    root = FOLDER.parents[1]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    program = [sys.executable, "-m", "tests.golden.interpreted_folder", folder, TOKENIZER]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=600, cwd=root)
    assert done.returncode == 0, done.stderr[-2000:]
