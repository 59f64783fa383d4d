"""How many tokens a step has in a graph and beside decode rows, by the model's size; which steps a graph takes."""

from pathlib import Path

import pytest

from quartet.checkpoint.spec import read_spec
from quartet.simulator.presets import preset
from worker_proc.graphs import specialization_sizes
from worker_proc.prefill_graph_runner import TOKEN_SIZES, step_sizes
from worker_proc.step_sizes import max_graph_tokens, mixed_tokens
from worker_proc.weights.tensors import Shard

MODELS = Path(__file__).resolve().parents[3] / "benchmarks" / "models"


@pytest.mark.parametrize(
    ("model", "simulated", "expected"), [("llama-3.1-8b", "llama-8b", 1344), ("qwen3-0.6b", "qwen3-0.6b", 4096)]
)
def test_a_step_with_decode_rows_is_as_long_as_a_reader_does_not_notice(
    model: str, simulated: str, expected: int
) -> None:
    spec = read_spec(MODELS / model, 4096)
    assert mixed_tokens(spec, Shard()) == expected
    assert {preset(f"{simulated}-{device}").mixed_tokens for device in ("h100", "h200")} == {expected}
    # Every such step has a graph.
    assert max_graph_tokens(spec, Shard()) >= expected
    assert max(step_sizes(max_graph_tokens(spec, Shard()), 512)) == (expected, 256)


def test_mixed_steps_are_of_a_size_that_linears_compute_fast() -> None:
    assert list(TOKEN_SIZES) == sorted(set(TOKEN_SIZES))
    assert {tokens for tokens, _ in step_sizes(4096, 512)} == set(TOKEN_SIZES)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([1, 2, 4, 8, 16], [1, 2, 4, 8, 16]),
        ([24, 32, 40, 48, 64, 80, 96, 128], [24, 32, 40, 64, 80, 128]),
        ([12], [12]),
    ],
)
def test_the_warm_up_runs_a_power_of_two_and_a_size_below_it(sizes: list[int], expected: list[int]) -> None:
    """A linear of 64 rows is compiled with another box than one of 40 to 56."""
    assert specialization_sizes(sizes) == expected
