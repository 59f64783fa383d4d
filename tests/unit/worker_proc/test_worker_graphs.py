"""Graph runners on a GPU: step descriptors, fused and other rows in one batch, and the CUDA graphs themselves."""

from pathlib import Path

import pytest
import torch

from tests.golden.oracles import FOLDER
from tests.support.local_engine import LocalEngine, make_config

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
]


def outputs(folder: Path, chunk: int, **worker: object) -> list[list[list[int]]]:
    """Return what each kind of request gives, every batch of one kind; then all kinds in one batch."""
    config = make_config(
        folder,
        tokenizer=FOLDER / "models" / "qwen3",
        device="cuda",
        attention_backend="triton",
        max_total_tokens=8192,
        **worker,
    )
    engine = LocalEngine(config)
    engine.restart(chunked_prefill_size=chunk)
    found = [engine.generate(PROMPTS, 40, **params) for params in PARAMS]
    engine.restart(chunked_prefill_size=chunk, enable_mixed_chunk=True)
    found.append(engine.generate(PROMPTS, 40, temperature=0.9, seed=3))
    return found


@pytest.mark.parametrize("name", ["qwen3", "llama"])
def test_graphs_change_no_token_in_fp32(name: str) -> None:
    folder = FOLDER / "models" / name
    plain = outputs(folder, 512, disable_cuda_graph=True)
    assert outputs(folder, 512) == plain
    assert outputs(folder, 16) == plain
    assert outputs(folder, 512, cuda_graph_max_bs=4) == plain
