"""Weights through the stage: every byte at its place, converted, whatever the pieces' edges."""

import pytest
import torch

from worker_proc.weights.stage import PIECES, THREADS, Stage

CPU = torch.device("cpu")
ON_A_GPU = [pytest.param("cuda", marks=pytest.mark.gpu), "cpu"]


@pytest.mark.parametrize("device", ON_A_GPU)
@pytest.mark.parametrize("shape", [(1,), (5, 3), (40, 7), (PIECES * 64 + 1,)])
def test_what_is_placed_is_what_was_given(device: str, shape: tuple[int, ...]) -> None:
    stage = Stage(torch.device(device), piece_bytes=64)
    for source_dtype in (torch.bfloat16, torch.float16, torch.float32):
        source = torch.randn(shape).to(source_dtype)
        for dtype in (torch.bfloat16, torch.float32):
            target = torch.full(shape, float("nan"), dtype=dtype, device=device)
            stage.place(target, source)
            assert torch.equal(target.cpu(), source.to(dtype))
    stage.close()


@pytest.mark.parametrize("device", ON_A_GPU)
def test_the_source_may_change_at_once_and_the_ring_comes_round(device: str) -> None:
    stage = Stage(torch.device(device), piece_bytes=1 << 20)
    source = torch.empty(1 << 20, dtype=torch.uint8)
    targets = []
    for value in range(3 * PIECES):
        source.fill_(value)
        targets.append(torch.empty(1 << 20, dtype=torch.uint8, device=device))
        stage.place(targets[-1], source)
    stage.close()
    assert [int(target.min()) for target in targets] == [int(target.max()) for target in targets] == list(range(12))


def test_columns_of_a_matrix_are_placed_as_a_matrix_of_their_own() -> None:
    stage, source = Stage(CPU, piece_bytes=8 * THREADS), torch.randn(9, 10)
    target = torch.empty(9, 4)
    stage.place(target, source[:, 3:7])
    stage.close()
    assert torch.equal(target, source[:, 3:7])


def test_a_part_of_a_larger_tensor_is_filled_and_nothing_else() -> None:
    stage, whole = Stage(CPU, piece_bytes=64), torch.zeros(6, 50)
    rows = torch.randn(2, 50)
    stage.place(whole[2:4], rows)
    stage.close()
    assert torch.equal(whole[2:4], rows) and not whole[:2].any() and not whole[4:].any()
