"""The runner of the tiny Qwen3 on the CPU, for engines in memory whose workers die: each incarnation resets it."""

import functools

from tests.support.local_engine import make_config
from tests.support.memory_engine import MODEL
from worker_proc.contract import Runner


@functools.cache
def tiny_runner() -> Runner:
    """Return the runner; torch is loaded by the first call."""
    import torch

    from worker_proc.loading import load_runner

    torch.set_num_threads(1)
    return load_runner(make_config(MODEL, max_total_tokens=2048), lambda: None)
