"""Scenario rag with states: prompts that share a document find it cached, by as many checkpoints as a tenth of the pool
holds."""

import msgspec
import pytest

from quartet.simulator.capacity import UNBOUNDED_QUEUE
from quartet.simulator.driver import simulate
from quartet.simulator.presets import preset
from quartet.simulator.scenarios import rag
from quartet.wire.config import SchedulerConfig

STATE_TOKENS = 2364
"""KV of so many tokens takes as much memory as the states of a request, in Qwen3.5-27B."""


@pytest.mark.parametrize(("policy", "held"), [("lpm-aging", 2.5), ("fcfs", 5.0)])
def test_states_cost_less_than_a_tenth_of_the_hits(policy: str, held: float) -> None:
    """CKP-2, CKP-4, CKP-6: documents of 32,768 tokens."""
    engine = msgspec.structs.replace(preset("llama-8b-h100"), context_length=65536)
    scenario = rag(engine, seed=0, prefix_tokens=32768, held_prefixes=held)
    config = SchedulerConfig(
        schedule_policy=policy,
        max_running_requests=scenario.max_running_requests,
        max_queued_requests=UNBOUNDED_QUEUE,
    )
    count = scenario.engine.kv_tokens // 10 // STATE_TOKENS
    shares = []
    for checkpoints in (-1, count, 0):
        counters = simulate(
            scenario.requests, msgspec.structs.replace(scenario.engine, checkpoints=checkpoints), config
        ).counters
        shares.append(counters["cached_tokens"] / counters["input_tokens"])
    assert 3 <= count <= 6 and shares[1] >= 0.9 * shares[0] > 0.5 and shares[2] == 0
