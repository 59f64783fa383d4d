"""In-flight ids: outputs by sequence number, selected and replaced rows; rows that the fused sampler cannot sample."""

import numpy as np
import pytest
import torch

from quartet.wire.frames import SamplingParams
from worker_proc.completion_poller import CompletionPoller
from worker_proc.pinned_rings import EMPTY, RING, PinnedRings
from worker_proc.sampler import Sampler, SamplingEntry
from worker_proc.transfer import Download, PatchedDownload

CPU = torch.device("cpu")


def test_descriptors_and_outputs_share_a_sequence_number_and_wrap_around() -> None:
    rings = PinnedRings(64, 4, CPU, CompletionPoller(CPU))
    for number in range(1, 2 * RING + 2):
        descriptor = rings.begin()
        descriptor[0] = number
        index = number % RING
        assert int(rings.descriptors[index, 0]) == number
        rings.outputs[index] = torch.arange(4, dtype=torch.int32) + 10 * number
        output = rings.end(np.array([0, 3]), 4)
        assert output.is_done() and output.wait().tolist() == [10 * number, 10 * number + 3]
    rings.begin()
    rings.resync()
    assert int(rings.sequence) == 2 * RING + 2
    rings.restart()
    rings.begin()[0] = 77
    assert int(rings.descriptors[1, 0]) == 77


def test_an_output_is_done_when_each_of_its_rows_is_there() -> None:
    rings = PinnedRings(64, 4, CPU, CompletionPoller(CPU))
    for _ in range(RING + 1):
        rings.begin()
        row = rings.outputs[rings._count % RING]
        assert row.tolist() == [EMPTY] * 4
        output, others, none = rings.end(slice(3), 4), rings.end(np.array([1]), 4), rings.end(slice(0), 4)
        assert none.is_done() and none.wait().tolist() == []
        row[2] = 7
        assert not output.is_done() and not others.is_done()
        row[1] = -1
        assert not output.is_done() and others.wait().tolist() == [-1]
        row[0] = 5
        assert output.is_done() and output.wait().tolist() == [5, -1, 7]


def test_a_patch_replaces_its_rows() -> None:
    whole = Download(torch.tensor([5, 6, 7, 8], dtype=torch.int32), None)
    patch = Download(torch.tensor([60, -1], dtype=torch.int32), None)
    both = PatchedDownload(whole, np.array([1, 3]), patch)
    assert both.is_done() and both.wait().tolist() == [5, 60, 7, -1]
    assert whole.wait().tolist() == [5, 6, 7, 8]


@pytest.mark.parametrize(
    ("params", "is_unfused"),
    [
        ({"temperature": 0.0}, False),
        ({"temperature": 0.7}, False),
        ({"temperature": 0.7, "top_k": 1, "top_p": 0.5}, False),
        ({"temperature": 0.0, "top_p": 0.5}, False),
        ({"temperature": 0.7, "top_p": 0.9}, True),
        ({"temperature": 0.7, "top_k": 4}, True),
        ({"temperature": 0.7, "min_p": 0.1}, True),
        ({"temperature": 0.0, "frequency_penalty": 0.1}, True),
        ({"temperature": 0.0, "logit_bias": ((3, 1.0),)}, True),
        ({"temperature": 0.0, "min_new_tokens": 2}, True),
        ({"temperature": 0.0, "logprobs": 0}, True),
    ],
)
def test_rows_are_unfused_as_long_as_their_slot_needs_the_full_sampler(
    params: dict[str, object], is_unfused: bool
) -> None:
    sampler = Sampler(3, 20, 64, (2,), "cpu")
    ids = np.array([1], dtype=np.int64)
    sampler.set_slots([SamplingEntry(0, SamplingParams(temperature=0.0), ids, 1, 0)])
    sampler.set_slots([SamplingEntry(2, SamplingParams(**params), ids, 1, 0)])
    assert sampler.unfused_rows(np.array([2, 0])).tolist() == ([0] if is_unfused else [])
    sampler.drop_slot(2)
    assert not len(sampler.unfused_rows(np.array([0, 2])))
