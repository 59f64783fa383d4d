"""How far quantised weights and an FP8 KV cache move a model's answers: each format against float32, on the CPU.

    OMP_NUM_THREADS=2 python -m benchmarks.quantization_errors [MODEL] [--prompts N] [--json FILE]

The prompts of tests/golden with the ids that float32 answers are run once for each format. Compared are the
distributions of the next id at each answered id: the mean and the 99th percentile of the Kullback-Leibler divergence in
nats, and the share of ids that stay the likeliest. `margin` is by how many nats float32 prefers its first id to the
second where a format prefers another, at most.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.model_configs import ROOT
from benchmarks.report import describe_host, report
from quartet.checkpoint.quantization import Quantization
from quartet.checkpoint.resolve import resolve_model
from quartet.checkpoint.spec import ModelSpec, read_spec
from quartet.wire.config import ModelConfig
from worker_proc.batch import ChunkBatch, ForwardBatch
from worker_proc.models.attention_shape import attention_shape
from worker_proc.models.decoder import Decoder
from worker_proc.ops.interface import AllReduce, Linear
from worker_proc.ops.torch_ops import TorchOps
from worker_proc.weights import fp8
from worker_proc.weights.loader import Loader
from worker_proc.weights.quantized import Weight, dequantized, quantized
from worker_proc.weights.tensors import ModelTensors, Shard

CPU, PAGE, CONTEXT = torch.device("cpu"), 16, 1024


class Format(NamedTuple):
    """What a row of the table has in fewer bits. `coded_rows`: activations in FP8, with a scale for each row."""

    name: str
    weights: Quantization | None = None
    kv: torch.dtype = torch.float32
    coded_rows: bool = False


CHANNEL = Quantization("fp8 by row", "fp8", "plain", (1, 0), ignored=("lm_head",))
BLOCKS = replace(CHANNEL, group=(128, 128))
FORMATS = (
    Format("FP8, a scale a row (--quantization fp8)", CHANNEL),
    Format("FP8, blocks of 128x128", BLOCKS),
    Format("FP8, a scale a row, activations too", CHANNEL, coded_rows=True),
    Format("FP8 KV cache", None, fp8.E4M3),
    Format("FP8, a scale a row, and KV cache", CHANNEL, fp8.E4M3),
)


class CodedLinear:
    """A linear whose activations are coded first, as many rows are on a Hopper GPU."""

    def __init__(self, linear: Linear) -> None:
        self._linear = linear

    def __call__(self, x: Tensor) -> Tensor:
        """Return (coded x) W^T + b."""
        return self._linear(_coded_rows(x))

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """Return residual + (coded x) W^T + b."""
        return self._linear.add(_coded_rows(x), residual)

    def write(self, x: Tensor, out: Tensor) -> None:
        """Fill `out` with x W^T; the last linear has its activations as they are."""
        self._linear.write(x, out)


class CodingOps(TorchOps):
    """The torch operations with coded activations."""

    def linear(self, weight: Weight, bias: Tensor | None = None, all_reduce: AllReduce | None = None) -> Linear:
        """See Ops.linear."""
        return CodedLinear(super().linear(weight, bias, all_reduce))


class Prompt(NamedTuple):
    """One prompt, and what float32 answers greedily."""

    prompt_ids: list[int]
    output_ids: list[int]


def read_prompts(count: int) -> list[Prompt]:
    """Return the shortest prompts of the recorded ones."""
    rows = json.loads((ROOT / "tests" / "golden" / "smollm2_oracle.json").read_text())["prompts"]
    found = [Prompt(row["prompt_ids"], row["output_ids"]) for row in rows]
    return sorted(found, key=lambda one: len(one.prompt_ids))[:count]


def _coded_rows(x: Tensor) -> Tensor:
    codes, scale = fp8.quantize(x, (1, x.shape[1]))
    return fp8.dequantize(codes, scale, (1, x.shape[1])).to(x.dtype)


def weights_of(folder: Path, spec: ModelSpec, method: Quantization | None) -> ModelTensors:
    """Return float32 weights, the linears of the layers rounded to a format."""
    tensors = Loader(folder, spec, Shard(), torch.float32, CPU, lambda: None).load()

    def rounded(weight: Weight | None) -> Weight | None:
        if weight is None or method is None or not isinstance(weight, Tensor):
            return weight
        return dequantized(quantized(weight, method), torch.float32)

    names = ("qkv", "output", "gate_up", "down")
    layers = [replace(layer, **{name: rounded(getattr(layer, name)) for name in names}) for layer in tensors.layers]
    return replace(tensors, layers=layers)


def logits_of(decoder: Decoder, ids: list[int], kv: torch.dtype) -> Tensor:
    """Return the logits [len(ids), vocab] of one prompt, all of it one chunk."""
    count, pages = len(ids), -(-len(ids) // PAGE)
    whole = torch.arange(count)
    table = torch.arange(1, pages + 1, dtype=torch.int32).view(1, -1)
    lens, slots = torch.tensor([count], dtype=torch.int32), torch.zeros(1, dtype=torch.int64)
    chunks = ChunkBatch(
        [count], [count], torch.tensor([0, count], dtype=torch.int32), lens, table, slots, num_tokens=count
    )
    found: list[Tensor] = []
    batch = ForwardBatch(
        count, torch.tensor(ids), whole, whole + PAGE, whole[-1:], slots, lens, np.array([count]), False, chunks, None
    )
    caches, _ = decoder.allocate_caches([pages + 1], 1, torch.float32, kv)
    decoder.forward(batch, caches, lambda: None, on_hidden=found.append)
    return decoder.logits(found[0])


def answers(folder: Path, spec: ModelSpec, prompts: list[Prompt], kind: Format) -> list[Tensor]:
    """Return the log-probabilities [answered ids, vocab] of each prompt."""
    shape = attention_shape(spec, Shard(), PAGE, CONTEXT, CPU)
    ops = (CodingOps if kind.coded_rows else TorchOps)(shape, torch.float32, CPU)
    decoder = Decoder(spec, ops, weights_of(folder, spec, kind.weights), Shard())
    found = []
    for one in prompts:
        logits = logits_of(decoder, one.prompt_ids + one.output_ids[:-1], kind.kv)
        found.append(logits[len(one.prompt_ids) - 1 :].float().log_softmax(-1))
    return found


def compared(name: str, exact: list[Tensor], found: list[Tensor]) -> dict[str, Any]:
    """Return a row of the table."""
    one, other = torch.cat(exact), torch.cat(found)
    divergence = (one.exp() * (one - other)).sum(-1)
    agrees = one.argmax(-1) == other.argmax(-1)
    best = one.topk(2).values
    margins = (best[:, 0] - best[:, 1])[~agrees]
    return {
        "format": name,
        "ids": len(one),
        "kl_mean": round(float(divergence.mean()), 5),
        "kl_p99": round(float(divergence.quantile(0.99)), 4),
        "agreement": round(float(agrees.float().mean()), 4),
        "margin": round(float(margins.max()), 3) if len(margins) else 0.0,
    }


def main() -> int:
    """Run all formats and print them."""
    parser = argparse.ArgumentParser(description="errors of quantised weights")
    parser.add_argument("model", nargs="?", default="smollm2")
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--json", default="")
    options = parser.parse_args()
    model = resolve_model(ModelConfig(model_path=options.model, dtype="float32"))
    folder = Path(model.folder)
    spec = read_spec(folder, CONTEXT)
    prompts = read_prompts(options.prompts)
    with torch.inference_mode():
        exact = answers(folder, spec, prompts, Format("float32"))
        rows = [compared(kind.name, exact, answers(folder, spec, prompts, kind)) for kind in FORMATS]
    report({"host": describe_host(), "model": model.name, "formats": rows}, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
