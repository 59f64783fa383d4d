"""The ways in which tests.gpu.models_on_device runs the same prompts: engines, schedules and batches.

In fp32 none of them may change a token. The name of a way says what it covers.
"""

import itertools
from dataclasses import dataclass, field
from random import Random
from typing import Any

# Lengths of prompts: single tokens, page and tile edges, more than one split of decode attention.
_LENGTHS = (1, 15, 16, 17, 31, 32, 47, 63, 64, 65, 100, 127, 128, 129, 260)
# (shared tokens, own tokens): within a page, at its edge, beyond a chunk.
_SHARED = ((64, 5), (64, 21), (100, 3), (100, 40))
# Lengths of further prompts for a folder without an oracle.
_OTHERS = (2, 33, 96, 200, 500, 700)
_QUICK_LENGTHS, _QUICK_SHARED = (1, 17, 33), ((16, 3), (16, 7))
_GRAPHS = {"cuda_graph_max_bs": 32}

ALONE = (1,)
TORCH = "torch on the cpu"
ENGINES: dict[str, dict[str, Any]] = {
    "eager": {"disable_cuda_graph": True},
    "graphs": _GRAPHS,
    "graphs, page 64": {**_GRAPHS, "page_size": 64},
    TORCH: {"device": "cpu", "attention_backend": "torch"},
}
"""Worker settings by name."""


@dataclass(frozen=True, slots=True)
class Way:
    """One way to run the prompts.

    `batches`: sizes of the batches, which start over at the first prompt after the last; empty: all at once; or ALONE.
    `times`: how often to run them. `draws`: sample with `draw_params` instead of greedily. `scored`: with
    log-probabilities, which are compared with those of TORCH.
    """

    name: str
    engine: str
    scheduler: dict[str, Any] = field(default_factory=dict)
    batches: tuple[int, ...] = ()
    times: int = 1
    draws: bool = False
    scored: bool = False

    @property
    def settings(self) -> dict[str, Any]:
        """Scheduler settings: by default no prefix cache, and a prompt in one chunk."""
        return {"disable_radix_cache": True, "chunked_prefill_size": -1, **self.scheduler}

    def split(self, prompts: int) -> list[list[int]]:
        """Return the numbers of the prompts that run together, batch after batch."""
        if self.batches == ALONE:
            batches = [[number] for number in range(prompts)]
        else:
            numbers = itertools.cycle(range(prompts))
            batches = [list(itertools.islice(numbers, size)) for size in self.batches or (prompts,)]
        return batches * self.times


def ways(is_quick: bool) -> list[Way]:
    """Return all ways: TORCH first, which the scored ones need, then those of one engine next to each other."""
    batches = (1, 3) if is_quick else (1, 3, 8, 20)
    chunks_16, chunks_64, chunks_128 = ({"chunked_prefill_size": size} for size in (16, 64, 128))
    # A mixed step takes a prompt's first chunk only if a page of it fits beside the rows.
    mixed, tree = {"enable_mixed_chunk": True}, {"disable_radix_cache": False}
    return [
        Way(TORCH, TORCH, scored=True),
        Way("graphs off, together", "eager"),
        Way("graphs off, chunks of 48, mixed", "eager", {"chunked_prefill_size": 48, **mixed}),
        Way("graphs off, scored, chunks of 16", "eager", chunks_16, scored=True),
        Way("graphs off, draws, together", "eager", draws=True),
        Way("alone", "graphs", batches=ALONE),
        Way("together", "graphs"),
        Way(f"batches of {', '.join(map(str, batches))}", "graphs", batches=batches),
        Way("chunks of 16", "graphs", chunks_16),
        Way("chunks of 64", "graphs", chunks_64),
        Way("chunks of 48, mixed", "graphs", {"chunked_prefill_size": 48, **mixed}),
        Way("chunks of 64, mixed", "graphs", {**chunks_64, **mixed}),
        Way("three times with the tree", "graphs", tree, times=3),
        Way("with retractions", "graphs", {"test_retract": True}),
        Way("with retractions and the tree", "graphs", {"test_retract": True, **tree}),
        Way("scored, together", "graphs", scored=True),
        Way("scored, chunks of 64, mixed", "graphs", {**chunks_64, **mixed}, scored=True),
        Way("draws, alone", "graphs", batches=ALONE, draws=True),
        Way("draws, chunks of 64, mixed", "graphs", {**chunks_64, **mixed}, draws=True),
        Way("page 64, together", "graphs, page 64"),
        Way("page 64, mixed, twice with the tree", "graphs, page 64", {**chunks_128, **mixed, **tree}, times=2),
        Way("page 64, scored, chunks of 64", "graphs, page 64", chunks_64, scored=True),
    ]


def make_prompts(given: list[list[int]], vocab_size: int, is_quick: bool) -> list[list[int]]:
    """Return the `given` prompts, then prompts of mixed lengths, some with common prefixes; always the same."""
    random = Random(vocab_size)

    def ids(length: int) -> list[int]:
        return [random.randrange(3, vocab_size) for _ in range(length)]

    lengths, shared = (_QUICK_LENGTHS, _QUICK_SHARED) if is_quick else (_LENGTHS, _SHARED)
    prefix = ids(max(length for length, _ in shared))
    if not given and not is_quick:
        given = [ids(length) for length in _OTHERS]
    return [*given, *map(ids, lengths), *(prefix[:length] + ids(own) for length, own in shared)]


def greedy_params(number: int, new_tokens: int) -> dict[str, Any]:
    """Return the parameters of prompt `number`: lengths are staggered, so that a batch shrinks row by row."""
    return {"max_new_tokens": new_tokens - number % 5 * new_tokens // 12, "temperature": 0.0}


def draw_params(number: int, new_tokens: int) -> dict[str, Any]:
    """Return the parameters of the ways that draw: a third of the rows plain, a third greedy, a third filtered."""
    params = greedy_params(number, new_tokens)
    kinds = ({"temperature": 0.8}, {}, {"temperature": 0.8, "top_k": 40, "top_p": 0.95})
    return {**params, "seed": 1000 + number, **kinds[number % 3]}
