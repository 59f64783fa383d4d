"""The operations one by one: packed linears, norms, and the split of a decode batch by length."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from quartet.checkpoint.attention_kinds import Heads
from quartet.wire.errors import ConfigError
from worker_proc.ops.interface import AttentionShape, LayerKind
from worker_proc.ops.length_groups import group_by_length
from worker_proc.ops.linear import PackedLinear, PlainLinear, can_prepack
from worker_proc.ops.torch_ops import TorchOps

needs_packing = pytest.mark.skipif(not can_prepack(torch.float32), reason="this torch has no prepacked linears")


def rows(count: int, width: int) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(count))


@needs_packing
@pytest.mark.parametrize(("out", "inner"), [(96, 64), (576, 1536), (64, 576)])
def test_packed_fp32_rows_do_not_depend_on_their_number(out: int, inner: int) -> None:
    linear = PackedLinear(rows(out, inner), None, None)
    x, residual = rows(40, inner), rows(40, out)
    whole, added = linear(x), linear.add(x, residual)
    for count in (1, 2, 3, 8, 17):
        assert torch.equal(linear(x[:count]), whole[:count])
        assert torch.equal(linear.add(x[:count], residual[:count]), added[:count])


@needs_packing
def test_packed_linears_compute_what_plain_ones_do() -> None:
    weight, bias, x, residual = rows(48, 32), rows(1, 48)[0], rows(5, 32), rows(5, 48)
    packed, plain = PackedLinear(weight, bias, None), PlainLinear(weight, bias, None)
    torch.testing.assert_close(packed(x), plain(x))
    torch.testing.assert_close(packed.add(x, residual), plain.add(x, residual))
    torch.testing.assert_close(packed.unary(x, "swish"), functional.silu(plain(x)))


@pytest.mark.parametrize("kind", [PackedLinear, PlainLinear])
def test_a_row_parallel_linear_is_reduced_before_the_residual_is_added(kind: type[PlainLinear]) -> None:
    weight, x, residual = rows(8, 6), rows(3, 6), rows(3, 8)
    linear = kind(weight, None, lambda y: 2 * y)
    torch.testing.assert_close(linear.add(x, residual), residual + 2 * (x @ weight.T))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rms_norm_rounds_before_it_scales_and_leaves_its_input_alone(dtype: torch.dtype) -> None:
    shape = AttentionShape(16, 0.5, (LayerKind(Heads(1, 1, 4), torch.zeros(8, 4)),))
    ops = TorchOps(shape, dtype, torch.device("cpu"))
    x, weight = rows(5, 64).to(dtype), rows(1, 64)[0].to(dtype)
    before = x.clone()
    exact = x.double() / torch.sqrt(x.double().square().mean(-1, keepdim=True) + 1e-5)
    torch.testing.assert_close(ops.rms_norm(x, weight, 1e-5), exact.to(dtype) * weight)
    assert torch.equal(x, before)


def test_rows_are_grouped_only_where_it_saves_padding() -> None:
    assert [g.tolist() for g in group_by_length(np.array([5, 9, 300]))] == [[0, 1, 2]]
    lengths = np.array([10, 4000, 30, 3000, 12])
    assert [g.tolist() for g in group_by_length(lengths)] == [[1, 3], [2], [0, 4]]


def test_a_foreign_kernels_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = pytest.importorskip("kernels")
    from worker_proc.ops.triton_ops import check_kernels_package

    check_kernels_package()
    monkeypatch.setattr(kernels, "__path__", ["/elsewhere/kernels"])
    with pytest.raises(ConfigError, match=r"/elsewhere/kernels hides Quartet's own: run `pip uninstall kernels`"):
        check_kernels_package()


def test_the_triton_operations_compute_what_the_torch_ones_do(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    here = Path(__file__).parent
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "1",
        "PYTHONPATH": f"{here.parents[2]}{os.pathsep}{here}",
        "OMP_NUM_THREADS": "1",
    }
    program = [sys.executable, here / "interpreted_models.py", tmp_path]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr[-2000:]
