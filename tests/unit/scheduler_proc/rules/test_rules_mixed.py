"""Whether decode rows join prefill steps, and how large such a step is, where the settings leave it to the worker."""

from types import SimpleNamespace
from typing import cast

import pytest
from factory import greedy, own_tokens

from quartet.wire.config import SchedulerConfig
from quartet.wire.ids import Epoch
from quartet.wire.lengths import AUTO_CHUNK
from scheduler_proc.core.events import WorkerUp
from scheduler_proc.core.request import Request
from scheduler_proc.core.sizes import is_mixing, mixed_budget
from tests.support.core_rig import CoreRig


@pytest.mark.parametrize(
    ("setting", "worker_tokens", "expected"),
    [(None, 0, False), (None, 1344, True), (False, 1344, False), (True, 0, True), (True, 1344, True)],
)
def test_the_worker_decides_where_the_setting_does_not(
    setting: bool | None, worker_tokens: int, expected: bool
) -> None:
    config = SchedulerConfig(enable_mixed_chunk=setting)
    assert is_mixing(config, worker_tokens) == expected


@pytest.mark.parametrize(
    ("size", "worker_tokens", "rows", "waiting", "expected"),
    [
        (0, 0, 100, [], AUTO_CHUNK),
        (0, 1344, 0, [], AUTO_CHUNK),
        (0, 1344, 100, [], 1344),
        # However many rows there are, prompts get on.
        (0, 1344, 1200, [], 1536),
        (0, 1344, 4000, [], 4336),
        # A backlog is computed in few steps.
        (0, 1344, 100, [512] * 8, 1344),
        (0, 1344, 100, [512] * 16, 2048),
        (0, 1344, 100, [512] * 900, AUTO_CHUNK),
        (4096, 1344, 100, [512] * 900, 4096),
        (-1, 1344, 100, [512] * 900, -1),
    ],
)
def test_the_budget_of_a_step_that_rows_join(
    size: int, worker_tokens: int, rows: int, waiting: list[int], expected: int
) -> None:
    config = SchedulerConfig(chunked_prefill_size=size)
    requests = [cast(Request, SimpleNamespace(uncomputed_tokens=tokens)) for tokens in waiting]
    assert mixed_budget(config, size or AUTO_CHUNK, worker_tokens, rows, requests) == expected


def test_prompts_take_whole_steps_until_others_decode() -> None:
    """STEP-2 by default on a worker that gains by it: the first prompt in one step, one that comes later in several."""
    rig = CoreRig(pages=600, page_size=4, slots=8, chunked_prefill_size=0)
    rig.worker_lost()
    rig.worker_up(mixed_tokens=64)
    first = rig.submit(own_tokens(0, 300), params=greedy(20))
    rig.step()
    late = rig.submit(own_tokens(1, 150), params=greedy(3))
    found = []
    while rig.steps:
        step = rig.steps[0]
        found += [(chunk.length, step.decode) for chunk in step.chunks]
        rig.step()
    assert found == [(60, True), (63, True), (27, True)]
    assert [rig.streams[rid, 0].ending for rid in (first, late)] == ["length"] * 2


def test_a_worker_that_gains_nothing_is_given_no_mixed_step() -> None:
    rig = CoreRig(pages=600, page_size=4, slots=8, chunked_prefill_size=0)
    rig.submit(own_tokens(0, 30), params=greedy(20))
    rig.step()
    rig.submit(own_tokens(1, 150), params=greedy(3))
    assert WorkerUp(Epoch(1), 1, 1, False).mixed_tokens == 0
    while rig.steps:
        assert not (rig.steps[0].chunks and rig.steps[0].decode)
        rig.step()
