"""Ahead-of-time compilation: a recorded warm-up launches nothing; each recorded kernel is compiled and loaded once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from worker_proc.compilation import TRITON_HASH, share_triton_hash

SCRIPT = """
import sys
sys.path[:0] = [{kernels!r}, {root!r}]
import torch, triton
from cross_compile import empty, stub_driver
from triton.compiler.compiler import CompiledKernel
from kernels.activation import silu_mul
from kernels.norm import rms_norm
from worker_proc.compilation import compile_ahead

triton.runtime.driver.set_active(stub_driver())
loaded = []
CompiledKernel.run = property(lambda kernel: loaded.append(kernel.name))
x, weight = empty(4, 512), empty(512)

def warm_up():
    for _ in range(3):
        rms_norm(x, weight, 1e-6)
        silu_mul(x)

progress = []
assert compile_ahead(warm_up, lambda: progress.append(1)) == 2
assert sorted(loaded) == ["_gated_kernel", "_rms_norm_kernel"] and len(progress) == 2
# Loaded kernels are not launched by a second recording either, and there is nothing left to compile.
assert compile_ahead(warm_up, lambda: None) == 0 and len(loaded) == 2
"""


def test_a_recorded_warm_up_compiles_each_kernel_once_and_launches_none(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[3]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    source = SCRIPT.format(kernels=str(root / "tests" / "kernels"), root=str(root))
    done = subprocess.run([sys.executable, "-c", source], env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_workers_of_a_launch_compute_tritons_hash_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.runtime import cache

    computed: list[int] = []

    def compute() -> str:
        computed.append(1)
        return "3.6.0-abc"

    for _ in range(2):
        monkeypatch.setattr(cache, "triton_key", compute)
        share_triton_hash(tmp_path)
        assert cache.triton_key() == "3.6.0-abc"
    assert len(computed) == 1 and [path.name for path in tmp_path.iterdir()] == [TRITON_HASH]
