"""Weights through pinned staging: every byte in its place, converted, whatever the edges of the buffers."""

import pytest
import torch

from worker_proc.weights.staging import NUM_BUFFERS, THREADS, PinnedStaging

CPU = torch.device("cpu")
ON_A_GPU = [pytest.param("cuda", marks=pytest.mark.gpu), "cpu"]


@pytest.mark.parametrize("device", ON_A_GPU)
@pytest.mark.parametrize("shape", [(1,), (5, 3), (40, 7), (NUM_BUFFERS * 64 + 1,)])
def test_the_copy_equals_the_source(device: str, shape: tuple[int, ...]) -> None:
    staging = PinnedStaging(torch.device(device), buffer_bytes=64)
    for source_dtype in (torch.bfloat16, torch.float16, torch.float32):
        source = torch.randn(shape).to(source_dtype)
        for dtype in (torch.bfloat16, torch.float32):
            target = torch.full(shape, float("nan"), dtype=dtype, device=device)
            staging.copy(target, source)
            assert torch.equal(target.cpu(), source.to(dtype))
    staging.close()


@pytest.mark.parametrize("device", ON_A_GPU)
def test_the_source_may_change_at_once_and_the_ring_wraps_around(device: str) -> None:
    staging = PinnedStaging(torch.device(device), buffer_bytes=1 << 20)
    source = torch.empty(1 << 20, dtype=torch.uint8)
    targets = []
    for value in range(3 * NUM_BUFFERS):
        source.fill_(value)
        targets.append(torch.empty(1 << 20, dtype=torch.uint8, device=device))
        staging.copy(targets[-1], source)
    staging.close()
    assert [int(target.min()) for target in targets] == [int(target.max()) for target in targets] == list(range(12))


def test_columns_of_a_matrix_are_copied_as_a_matrix() -> None:
    staging, source = PinnedStaging(CPU, buffer_bytes=8 * THREADS), torch.randn(9, 10)
    target = torch.empty(9, 4)
    staging.copy(target, source[:, 3:7])
    staging.close()
    assert torch.equal(target, source[:, 3:7])


def test_a_part_of_a_larger_tensor_is_filled_and_nothing_else() -> None:
    staging, whole = PinnedStaging(CPU, buffer_bytes=64), torch.zeros(6, 50)
    rows = torch.randn(2, 50)
    staging.copy(whole[2:4], rows)
    staging.close()
    assert torch.equal(whole[2:4], rows) and not whole[:2].any() and not whole[4:].any()
