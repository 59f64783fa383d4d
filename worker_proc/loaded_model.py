"""What a runner runs: a model on its device, with everything that was chosen for it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from worker_proc.grammar.compiler import GrammarCompiler
from worker_proc.models.decoder import Decoder
from worker_proc.ops.interface import Ops
from worker_proc.sampler import Sampler


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model on its device, ready to run: `facts` are for the ready line.

    `max_graph_rows` is the largest decode batch with a CUDA graph, 0 for no graphs at all; `max_graph_tokens` the
    largest step with prefill chunks that has one. `count_pages` returns the page count that the free memory holds."""

    decoder: Decoder
    ops: Ops
    sampler: Sampler
    device: torch.device
    dtype: torch.dtype
    kv_dtype: torch.dtype
    max_graph_rows: int
    max_graph_tokens: int
    facts: dict[str, str | int | float]
    count_pages: Callable[[], int]
    grammars: GrammarCompiler
