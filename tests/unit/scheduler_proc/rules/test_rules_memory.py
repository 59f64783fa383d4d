"""A device without memory (STEP-15): batch and chunks shrink and grow again, and only what does not fit fails."""

import pytest

from quartet.wire.frames import SamplingParams, unpack_ids
from quartet.wire.ids import Rid
from scheduler_proc.core.memory_limit import RESULTS_BEFORE_GROWTH, MemoryLimit
from tests.support.core_rig import VOCAB, CoreRig
from tests.support.strict_worker import continuation

BIG = 90


class SmallDevice(CoreRig):
    """A rig whose worker has no memory for a step above `rows` on board or `tokens` of prompt, nor for prompts that
    begin with BIG."""

    def __init__(self, rows: int = 100, tokens: int = 10_000) -> None:
        super().__init__(pages=400, slots=32, chunked_prefill_size=64)
        self.rows, self.tokens = rows, tokens
        self.on_board: set[int] = set()
        self.shortages = 0

    def run_small(self) -> None:
        for _ in range(5000):
            if not self.steps:
                return
            step = self.steps[0]
            before = set(self.on_board)
            self.on_board -= {
                int.from_bytes(step.release[at : at + 4], "little") for at in range(0, len(step.release), 4)
            }
            self.on_board |= {enter.slot for enter in step.enter}
            has_big = any(unpack_ids(enter.ids)[0] == BIG for enter in step.enter)
            if has_big or len(self.on_board) > self.rows or sum(one.length for one in step.chunks) > self.tokens:
                self.shortages += 1
                self.on_board = before
                self.fail_step("oom")
                self.on_board = set()
            else:
                self.step()
        raise AssertionError("it never ends")


def submit_all(rig: CoreRig, number: int, prompt_tokens: int = 3) -> dict[Rid, list[int]]:
    params = SamplingParams(max_new_tokens=20, ignore_eos=True)
    prompts = [[1 + i, *([2] * (prompt_tokens - 1))] for i in range(number)]
    return {rig.submit(prompt, params=params): prompt for prompt in prompts}


def check(rig: CoreRig, prompts: dict[Rid, list[int]]) -> None:
    for rid, prompt in prompts.items():
        assert rig.streams[rid, 0].ending == "length"
        assert rig.outputs(rid) == continuation(prompt, 20, VOCAB, -1)


def test_once_is_computed_again() -> None:
    rig = SmallDevice()
    prompts = submit_all(rig, 4)
    rig.fail_step("oom")
    rig.run()
    check(rig, prompts)


@pytest.mark.parametrize("rows", [1, 3, 7])
def test_step15_the_batch_shrinks_until_it_fits(rows: int) -> None:
    rig = SmallDevice(rows=rows)
    prompts = submit_all(rig, 20)
    rig.run_small()
    check(rig, prompts)
    assert rig.shortages <= 25


def test_the_chunks_shrink_until_they_fit() -> None:
    rig = SmallDevice(tokens=9)
    prompts = submit_all(rig, 5, prompt_tokens=50)
    rig.run_small()
    check(rig, prompts)


def test_only_what_does_not_fit_by_itself_fails() -> None:
    rig = SmallDevice()
    small = submit_all(rig, 5, prompt_tokens=3)
    big = rig.submit([BIG] * 40, 5)
    rig.run_small()
    check(rig, small)
    assert rig.streams[big, 0].ending == "out_of_memory"


def test_the_bounds_grow_again() -> None:
    limit = MemoryLimit(4)
    assert limit.on_shortage(16, 64)
    assert (limit.rows, limit.prefill_tokens) == (8, 32)
    assert limit.on_shortage(8, 32)
    assert (limit.rows, limit.prefill_tokens) == (4, 16)
    assert limit.is_full(4) and not limit.is_full(3) and limit.budget(-1) == 16 and limit.budget(8) == 8
    for _ in range(RESULTS_BEFORE_GROWTH):
        limit.on_result()
    assert (limit.rows, limit.prefill_tokens) == (None, None)


def test_nothing_less_is_left_of_one_row_without_a_prompt() -> None:
    assert not MemoryLimit(4).on_shortage(1, 0)
    assert not MemoryLimit(4).on_shortage(1, 4)
