"""Graph runners on a GPU: step descriptors, fused and other rows in one batch, and the CUDA graphs themselves."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from quartet.checkpoint.spec import read_spec
from tests.golden.oracles import FOLDER
from tests.support.grammars import person, regex
from tests.support.local_engine import LocalEngine, make_config
from worker_proc.contract import Start
from worker_proc.weights.dummy import dummy_tensors
from worker_proc.weights.shared import map_weights, read_manifest
from worker_proc.weights.tensors import Shard

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

PROMPTS = [[5 + (7 * row + at) % 80 for at in range(3 + 11 * row)] for row in range(9)]
PARAMS = [
    {},
    {"temperature": 0.8, "seed": 5},
    {"temperature": 0.8, "seed": 5, "top_p": 0.7},
    {"temperature": 1.1, "seed": 9, "top_k": 12, "min_p": 0.02},
    {"frequency_penalty": 0.9, "presence_penalty": 0.4},
    {"temperature": 0.7, "seed": 1, "logit_bias": ((9, 4.0), (11, -100.0))},
    {"logprobs": 3},
    {"grammar": regex("[a-f]{30,40}").grammar},
    {"grammar": person().grammar, "temperature": 0.9, "seed": 4, "top_p": 0.8},
]


def outputs(folder: Path, chunk: int, start: Start = Start.FIRST, **worker: object) -> list[list[list[int]]]:
    """Return what each kind of request gives, every batch of one kind; then all kinds in one batch."""
    config = make_config(
        folder,
        tokenizer=FOLDER / "models" / "qwen3",
        device="cuda",
        attention_backend="triton",
        max_total_tokens=8192,
        **worker,
    )
    engine = LocalEngine(config, start=start)
    engine.restart(chunked_prefill_size=chunk)
    found = [engine.generate(PROMPTS, 40, **params) for params in PARAMS]
    engine.restart(chunked_prefill_size=chunk, enable_mixed_chunk=True)
    found.append(engine.generate(PROMPTS, 40, temperature=0.9, seed=3))
    if start is not Start.FIRST:
        while engine.runner.prepare_next():
            pass
        found.append(engine.generate(PROMPTS, 40, temperature=0.9, seed=3))
        assert found.pop() == found[-1]
    assert engine.runner.late_compiles == 0
    return found


@pytest.mark.parametrize("name", ["qwen3", "llama"])
def test_graphs_change_no_token_in_fp32(name: str) -> None:
    folder = FOLDER / "models" / name
    plain = outputs(folder, 512, disable_cuda_graph=True)
    assert outputs(folder, 512) == plain
    assert outputs(folder, 16) == plain
    assert outputs(folder, 512, cuda_graph_max_bs=4) == plain


@pytest.mark.parametrize("start", [Start.RECOVERY, Start.STANDBY])
def test_graphs_captured_at_need_change_no_token(start: Start) -> None:
    folder = FOLDER / "models" / "qwen3"
    assert outputs(folder, 16, start) == outputs(folder, 16)


HOLDER = """
import sys
from pathlib import Path
import torch
from quartet.checkpoint.spec import read_spec
from worker_proc.weights.dummy import dummy_tensors
from worker_proc.weights.shared import share, write_manifest
from worker_proc.weights.tensors import Shard
spec = read_spec(Path(sys.argv[1]), 256)
manifest, kept = share(dummy_tensors(spec, Shard(), torch.bfloat16, torch.device("cuda")), 1)
write_manifest(manifest, Path(sys.argv[2]))
print("shared", flush=True)
sys.stdin.read()
"""


def test_weights_of_another_process_are_mapped(tmp_path: Path) -> None:
    folder = FOLDER / "models" / "qwen3"
    command = [sys.executable, "-c", HOLDER, str(folder), str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "shared\n"
        mapped = map_weights(read_manifest(tmp_path))
        expected = dummy_tensors(read_spec(folder, 256), Shard(), torch.bfloat16, torch.device("cuda"))
        assert torch.equal(mapped.embedding, expected.embedding)
        for one, other in zip(mapped.layers, expected.layers, strict=True):
            assert torch.equal(one.qkv, other.qkv) and torch.equal(one.down, other.down)
        holder.kill()
