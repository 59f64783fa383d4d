"""The random numbers: known answers, equality with Triton, one definition whether a row is made whole or in parts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from worker_proc.sampler.philox import _uniform, exponentials, exponentials_at, philox, stream_key

WORD = 0xFFFFFFFF
# The vectors published with Random123: counter, key, output.
KNOWN = [
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([WORD] * 4, [WORD] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


def halves(key: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([key & WORD]), torch.tensor([key >> 32])


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_known_answers(counter, key, answer):
    words = philox(tuple(torch.tensor([word]) for word in counter), torch.tensor([key[0]]), torch.tensor([key[1]]))
    assert [int(word) for word in words] == answer


def test_inputs_are_left_alone():
    counter = tuple(torch.tensor([word]) for word in KNOWN[2][0])
    key = (torch.tensor([5]), torch.tensor([6]))
    philox(counter, *key)
    assert [int(word) for word in (*counter, *key)] == [*KNOWN[2][0], 5, 6]


def interpret(script: str, *arguments: str) -> str:
    """Run a script of this folder under Triton's interpreter, which has to be chosen before Triton is imported."""
    run = subprocess.run(
        [sys.executable, str(Path(__file__).with_name(script)), *arguments],
        env={
            **os.environ,
            "TRITON_INTERPRET": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(Path(__file__).parents[3]),
        },
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_equal_to_triton():
    cases = [(stream_key(1, 0), 0), (stream_key(2**63 + 5, 3), 131071), (WORD << 32, 7)]
    answers = json.loads(interpret("triton_noise.py", json.dumps(cases)))
    for (key, position), (words, uniforms) in zip(cases, answers, strict=True):
        groups = torch.arange(16)
        zero = torch.zeros_like(groups)
        ours = torch.stack(philox((groups, zero + position, zero, zero), *halves(key)), dim=1).flatten()
        assert ours.tolist() == words
        assert _uniform(ours).tolist() == uniforms


def test_triton_kernels_equal_their_torch_versions():
    assert interpret("triton_draw.py").strip() == "equal"


@pytest.mark.parametrize("vocab_size", [1, 4, 7, 1001])
def test_parts_are_parts_of_the_whole(vocab_size):
    low, high = halves(stream_key(11, 2))
    whole = exponentials(low, high, torch.tensor([77]), vocab_size)
    assert whole.shape == (1, vocab_size)
    ids = torch.tensor(sorted({0, vocab_size // 2, vocab_size - 1}))
    assert torch.equal(exponentials_at(low, high, torch.tensor([77]), ids), whole[0, ids])
    assert torch.equal(exponentials(low, high, torch.tensor([77]), vocab_size + 9)[:, :vocab_size], whole)


def test_rows_do_not_see_each_other():
    keys = [stream_key(seed, choice) for seed, choice in [(0, 0), (0, 1), (1, 0), (-1, 0)]]
    low, high = torch.tensor([key & WORD for key in keys]), torch.tensor([key >> 32 for key in keys])
    positions = torch.tensor([3, 3, 3, 4])
    together = exponentials(low, high, positions, 333)
    for row in range(4):
        alone = exponentials(low[row : row + 1], high[row : row + 1], positions[row : row + 1], 333)
        assert torch.equal(alone[0], together[row])


def test_streams_differ():
    low, high = halves(stream_key(5, 0))
    here = exponentials(low, high, torch.tensor([10]), 64)
    assert not torch.equal(here, exponentials(low, high, torch.tensor([11]), 64))
    keys = {stream_key(seed, choice) for seed in range(30) for choice in range(30)}
    assert len(keys) == 900
    assert stream_key(-1, 0) == stream_key(2**64 - 1, 0)


def test_exponential_distribution():
    low, high = halves(stream_key(123, 0))
    noise = exponentials(low, high, torch.arange(50), 4000).double()
    assert noise.min() >= 2.0**-31 * (1 - 1e-6)
    assert noise.max() < 16.7
    assert noise.mean().item() == pytest.approx(1.0, abs=0.01)
    assert noise.var().item() == pytest.approx(1.0, abs=0.03)
    assert (noise < 0.01).double().mean().item() == pytest.approx(0.00995, rel=0.1)
