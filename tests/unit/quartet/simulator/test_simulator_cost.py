"""The cost of steps: the fit finds the coefficients that made the data, and the presets fit what they claim."""

import random
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from quartet.simulator.cost import read_steps
from quartet.simulator.presets import GPU_PRESETS, PRESETS, measured_engines, preset
from scheduler_proc.core.step_cost import (
    CostError,
    MeasuredStep,
    StepCost,
    StepLoad,
    fit_steps,
    pairs,
    residuals,
)

RESULTS = Path(__file__).resolve().parents[4] / "benchmarks" / "results"
TRUE = StepCost(6e-3, 2e-5, 9e-10, 1e-5, 4e-8)


def made(cost: StepCost, noise: float = 0.0) -> list[MeasuredStep]:
    rng = random.Random(1)
    steps = []
    for _ in range(200):
        start, length, rows = rng.randrange(5000), rng.randrange(4000), rng.randrange(256)
        work = StepLoad(length, pairs(start, length), rows, rows * rng.randrange(4000))
        seconds = cost.seconds(work) * (1 + rng.uniform(-noise, noise))
        steps.append(MeasuredStep(*msgspec.structs.astuple(work), seconds=seconds))
    return steps


def test_the_fit_recovers_the_coefficients(tmp_path: Path) -> None:
    file = tmp_path / "steps.jsonl"
    file.write_bytes(b"".join(msgspec.json.encode(step) + b"\n" for step in made(TRUE)))
    assert msgspec.structs.astuple(fit_steps(read_steps(file))) == pytest.approx(
        msgspec.structs.astuple(TRUE), rel=1e-6
    )


def test_with_noise_it_comes_close() -> None:
    found = fit_steps(made(TRUE, 0.05))
    assert msgspec.structs.astuple(found) == pytest.approx(msgspec.structs.astuple(TRUE), rel=0.1)


def test_no_coefficient_is_negative_even_if_the_free_optimum_is() -> None:
    steps = [MeasuredStep(0, 0, rows, 0, seconds=2.0 - rows / 10) for rows in range(1, 10)]
    found = fit_steps(steps)
    assert min(msgspec.structs.astuple(found)) >= 0
    assert found.decode_row_s == 0 and found.base_s > 0


def test_pairs_count_each_query_with_every_key_before_it() -> None:
    assert pairs(0, 4) == 1 + 2 + 3 + 4
    assert pairs(10, 3) == 11 + 12 + 13


def test_alone_is_the_sum_of_its_steps() -> None:
    expected = TRUE.of(96, pairs(0, 96), 0, 0) + TRUE.of(4, pairs(96, 4), 0, 0) + TRUE.of(0, 0, 1, 101)
    assert TRUE.alone_s(100, 2, 96) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("line", "message"), [('{"seconds": 0}', "seconds"), ('{"rows": 1, "seconds": 1}', "rows"), ("[", "line 2")]
)
def test_a_wrong_line_is_named(line: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "steps.jsonl"
    file.write_text('{"decode_rows": 1, "seconds": 1}\n' + line)
    with pytest.raises(CostError, match="line 2") as raised:
        read_steps(file)
    assert message in str(raised.value)


def test_steps_without_work_determine_no_cost() -> None:
    with pytest.raises(CostError):
        fit_steps([])


BOUNDS = {"llama-8b-h100": 0.045, "llama-8b-h200": 0.07, "qwen3-0.6b-h100": 0.03, "qwen3-0.6b-h200": 0.15}


@pytest.mark.parametrize("name", GPU_PRESETS)
def test_the_gpu_presets_fit_their_steps_as_documented(name: str) -> None:
    steps = measured_engines()[name].steps
    assert max(abs(error) for _, error in residuals(fit_steps(steps), steps)) < BOUNDS[name]


def test_the_steps_of_the_gpu_presets_are_what_the_results_give() -> None:
    command = [sys.executable, "-m", "benchmarks.simulation.make_presets", "--check"]
    assert subprocess.run(command, cwd=RESULTS.parents[1], check=False).returncode == 0
    assert tuple(sorted(measured_engines())) == GPU_PRESETS


def test_a_decode_step_of_one_row_takes_what_was_measured() -> None:
    one = StepLoad(0, 0, 1, 1040)
    assert preset("qwen3-0.6b-h100").cost.seconds(one) == pytest.approx(1.02e-3, rel=0.03)
    assert preset("qwen3-0.6b-h200").cost.seconds(one) == pytest.approx(0.86e-3, rel=0.03)


def test_the_cpu_preset_is_the_fit_of_the_recorded_steps() -> None:
    recorded = fit_steps(read_steps(RESULTS / "smollm2-cpu-steps.jsonl"))
    shipped = preset("smollm2-cpu").cost
    assert msgspec.structs.astuple(shipped) == pytest.approx(msgspec.structs.astuple(recorded), rel=1e-3)


@pytest.mark.parametrize("name", PRESETS)
def test_each_preset_is_an_engine_whose_steps_take_time(name: str) -> None:
    engine = preset(name)
    assert engine.cost.seconds(StepLoad(0, 0, 1, 100)) > 0
    assert engine.kv_tokens % engine.page_size == 0 and engine.context_length > 0
