"""Puts Triton into interpreter mode where there is no GPU. With a GPU the same tests run compiled.

The mode is fixed when a function is decorated, Triton's own library included, so it has to be on before Triton is first
imported. The variable is taken back afterwards, so that child processes do not inherit it; the switch stays on.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).resolve().parent
for folder in (HERE, HERE.parents[1]):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

if not torch.cuda.is_available():
    if "triton" in sys.modules and not sys.modules["triton"].knobs.runtime.interpret:
        raise pytest.UsageError("Triton was imported before tests/kernels: run that folder in a pytest of its own")
    before = os.environ.get("TRITON_INTERPRET")
    os.environ["TRITON_INTERPRET"] = "1"
    import triton

    triton.knobs.runtime.interpret = True
    if before is None:
        del os.environ["TRITON_INTERPRET"]
    import interpreter_options
    import interpreter_shim

    interpreter_shim.install()
    interpreter_options.skip_overflow_checks()

import kernel_cases  # noqa: E402  (imports nothing of Triton, but lies on the path only by now)


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch) -> Iterator[kernel_cases.GuardedAllocator]:
    """Outputs allocated during the test start poisoned and lie between canaries, which are checked at the end."""
    allocator = kernel_cases.GuardedAllocator(torch.empty)
    monkeypatch.setattr(torch, "empty", allocator)
    yield allocator
    allocator.check()
