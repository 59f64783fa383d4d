"""Assigns one slot of a sampler to a sequence, for tests that do so one by one."""

import numpy as np

from quartet.wire.frames import SamplingParams
from worker_proc.sampler import Sampler, SamplingEntry


def set_slot(
    sampler: Sampler, slot: int, params: SamplingParams, ids: list[int], prompt_length: int, choice: int
) -> None:
    sampler.set_slots([SamplingEntry(slot, params, np.array(ids, dtype=np.int64), prompt_length, choice)])
