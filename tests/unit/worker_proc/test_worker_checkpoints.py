"""Checkpoints in the worker: what a step may say of them, and that a copy is one of all layers, in order."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from quartet.sizing.device import Device
from quartet.sizing.model_bytes import checkpoints_within
from quartet.sizing.plan import GIB, plan_memory
from quartet.wire.frames import Chunk, Enter, SamplingParams, Step, pack_ids
from quartet.wire.ids import Epoch
from tests.golden.oracles import FOLDER
from tests.support.local_engine import make_config
from worker_proc.checkpoints import StateCheckpoints
from worker_proc.contract import Capacity, StepError
from worker_proc.loading import load_runner
from worker_proc.ops.interface import LinearState
from worker_proc.slots import SlotTable

MODEL: Path = FOLDER / "models" / "qwen3_5"
CAPACITY = Capacity(4, 10, 2, 50, 16, "cpu", has_states=True, checkpoints=3)


def step(cached: int = 0, checkpoint: int = -1, saves: tuple[int, ...] = ()) -> Step:
    enter = Enter(0, 1, pack_ids([1] * 6), 6, cached, pack_ids([1, 2]), SamplingParams(), 0, checkpoint)
    return Step(Epoch(1), 1, b"", [enter], b"", [Chunk(0, 6 - cached, True)], False, b"", pack_ids(list(saves)))


def test_what_a_step_says_of_checkpoints() -> None:
    rows = SlotTable(CAPACITY).apply(step(4, 2, (0, 1, 0, 2)))
    assert rows.entered[0].frame.checkpoint == 2 and rows.saves.tolist() == [[0, 1], [0, 2]]
    assert SlotTable(CAPACITY).apply(step()).saves.shape == (0, 2)


@pytest.mark.parametrize(
    "wrong",
    [step(4), step(0, 1), step(4, 3), step(4, -2), step(saves=(0, 3)), step(saves=(1, 0)), step(saves=(2, 0)),
     step(saves=(0, -1)), step(saves=(0,))],
)  # fmt: skip
def test_a_step_that_contradicts_the_slots_is_refused(wrong: Step) -> None:
    with pytest.raises(StepError):
        SlotTable(CAPACITY).apply(wrong)
    assert SlotTable(replace(CAPACITY, has_states=False, checkpoints=0)).apply(step(4)).saves.size == 0


def test_a_copy_is_one_of_all_layers() -> None:
    rows, layers = 3 + 2, 2
    states = LinearState(torch.randn(layers, rows, 4, 6), torch.randn(layers, rows, 2, 3, 3))
    before = LinearState(states.window.clone(), states.matrix.clone())
    copies = StateCheckpoints(states, 3)
    copies.save(SlotTable(CAPACITY).apply(step(saves=(0, 1, 0, 0))).saves)
    copies.restore(SlotTable(CAPACITY).apply(step(4, 0)).entered)
    for now, then in ((states.window, before.window), (states.matrix, before.matrix)):
        assert torch.equal(now[:, 3], then[:, 0]) and torch.equal(now[:, 4], then[:, 0])
        assert torch.equal(now[:, :3], then[:, :3])


def test_plan_and_worker_agree_on_their_number() -> None:
    """CKP-6: a tenth of what the pool takes; none where nothing is shared."""
    config = make_config(MODEL, tokenizer=FOLDER / "models" / "qwen3", max_total_tokens=16384)
    device = Device("cpu", "cpu", 80 * GIB, 79 * GIB, True)
    plan, runner = plan_memory(config, device), load_runner(config, lambda: None)
    assert plan.checkpoints == runner.capacity.checkpoints == runner.facts()["checkpoints"] == 24
    assert f"{plan.max_running_requests} requests, 24 cached prefixes" in plan.line
    alone = make_config(
        MODEL, tokenizer=FOLDER / "models" / "qwen3", max_total_tokens=16384, scheduler={"disable_radix_cache": True}
    )
    assert plan_memory(alone, device).checkpoints == load_runner(alone, lambda: None).capacity.checkpoints == 0


def test_how_many_a_pool_holds() -> None:
    """CKP-6."""
    assert [checkpoints_within(size, 7) for size in (-5, 0, 69, 70, 700)] == [0, 0, 0, 1, 10]
    assert checkpoints_within(100, 0) == 0
