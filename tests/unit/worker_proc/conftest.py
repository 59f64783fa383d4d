"""Runners on tiny checkpoints, for the worker's tests."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import MakeRunner, make_weights, resolved, write_folder

from quartet.wire.config import Config, ModelConfig, SchedulerConfig, WorkerConfig
from worker_proc.loading import load_runner
from worker_proc.runner import ModelRunner


@pytest.fixture
def make_runner(tmp_path: Path) -> MakeRunner:
    """Return a function from a config.json and weights to a runner with 64 pages of 16 tokens."""

    def make(
        config: dict[str, Any],
        weights: dict[str, torch.Tensor] | None = None,
        kv_cache_dtype: Any = "auto",
        **model: Any,
    ) -> ModelRunner:
        folder = write_folder(tmp_path / "model", config, make_weights(config) if weights is None else weights)
        settings = Config(
            model=ModelConfig(**{"dtype": "float32", **model}),
            worker=WorkerConfig(device="cpu", max_total_tokens=64 * 16, page_size=16, kv_cache_dtype=kv_cache_dtype),
            scheduler=SchedulerConfig(max_running_requests=8),
            resolved=resolved(folder, config),
        )
        runner = load_runner(settings, lambda: None)
        runner.allocate(64)
        return runner

    return make
