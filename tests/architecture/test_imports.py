"""Only the worker loads torch, and the light processes start light: measured in processes of their own."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "triton", "transformers", "numpy")


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("quartet.wire.frames", (*HEAVY, "zmq", "aiohttp", "tokenizers", "uvloop")),
        ("quartet.supervisor.supervisor", (*HEAVY, "zmq", "aiohttp", "tokenizers")),
        ("quartet.cli.main", (*HEAVY, "zmq", "aiohttp", "tokenizers")),
        ("scheduler_proc.process", (*HEAVY, "aiohttp", "tokenizers")),
        ("tokenizer_proc.process", ("torch", "triton", "transformers", "aiohttp")),
        ("detok_proc.process", ("torch", "triton", "transformers", "aiohttp")),
        ("api_proc.process", ("torch", "triton", "transformers", "tokenizers", "jinja2")),
        ("worker_proc.simulated", ("torch", "triton")),
    ],
)
def test_what_an_import_brings(module: str, forbidden: tuple[str, ...]) -> None:
    program = f"import sys, {module}; print(*sorted(set({forbidden!r}) & set(sys.modules)))"
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert finished.stdout.split() == []
