"""Run as a program under TRITON_INTERPRET=1: the tiny models on the Triton operations against the dense reference.

A separate process, because the interpreter is enabled for a whole process.
"""

import sys
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from dense_decoder import dense_greedy
from step_feeder import StepFeeder
from tiny_models import VARIANTS, make_weights, resolved, write_folder

from quartet.wire.config import Config, ModelConfig, SchedulerConfig, WorkerConfig
from quartet.wire.frames import Chunk
from worker_proc import loading, runner
from worker_proc.models.attention_shape import attention_shape
from worker_proc.ops.interface import Ops
from worker_proc.ops.triton_ops import TritonOps


def triton_ops(config: WorkerConfig, spec: Any, shard: Any, dtype: Any, device: Any, context_length: int) -> Ops:
    """Stub of `choose_ops`: the Triton operations on CPU tensors."""
    return TritonOps(attention_shape(spec, shard, config.page_size, context_length, device), dtype)


def check(config: dict[str, Any], folder: Path) -> None:
    """Run one model: a chunked prompt beside decode rows, then decode; raises AssertionError for a wrong id."""
    weights = make_weights(config)
    settings = Config(
        model=ModelConfig(dtype="float32"),
        worker=WorkerConfig(device="cpu", max_total_tokens=32 * 16, page_size=16),
        scheduler=SchedulerConfig(max_running_requests=3),
        resolved=resolved(write_folder(folder, config, weights), config),
    )
    generator = torch.Generator().manual_seed(1)
    short, long = (torch.randint(3, 96, (n,), generator=generator).tolist() for n in (5, 37))
    with mock.patch.object(loading, "choose_ops", triton_ops), mock.patch.object(runner, "_CPU_WARM_UP", ()):
        model = loading.load_runner(settings, lambda: None)
        model.allocate(32)
    feeder = StepFeeder(model)
    feeder.step([feeder.enter(0, short, 10)], [Chunk(0, 5, True)])
    feeder.step([feeder.enter(1, long, 10)], [Chunk(1, 20, False)])
    feeder.step(chunks=[Chunk(1, 17, True)])
    feeder.step()
    assert feeder.outputs[0] == dense_greedy(config, weights, short, 4)
    assert feeder.outputs[1] == dense_greedy(config, weights, long, 2)


if __name__ == "__main__":
    for name in ("qwen3",):
        check(VARIANTS[name], Path(sys.argv[1]) / name)
