"""`quartet advise --fit URL` measures the steps of a running engine; the simulated worker has but one length."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from quartet.cli.calibration import calibrated
from quartet.cli.main import main
from quartet.simulator.presets import preset
from quartet.simulator.request import Workload
from quartet.simulator.trace import write_trace
from quartet.wire.errors import EngineError
from tests.support.server import Server, free_port

pytestmark = pytest.mark.e2e

STEP_S = 0.02
SIZE = ("--max-total-tokens", "4096", "--page-size", "8", "--max-running-requests", "6", "--context-length", "2048")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server("--simulated-worker", "--simulated-step-ms", str(1000 * STEP_S), *SIZE) as server:
        yield server


def test_the_steps_and_the_size_are_those_of_the_engine(server: Server) -> None:
    engine, steps = calibrated(server.url, preset("llama-8b-h100"))
    assert (engine.kv_tokens, engine.page_size, engine.max_slots, engine.context_length) == (4096, 8, 6, 2048)
    assert not engine.is_cpu and engine.mixed_tokens == 0
    notes = {step.note for step in steps}
    assert {"prompt of 1024 in 1", "1 rows of 64", "4 rows of 64"} <= notes
    assert not notes & {"prompt of 2048 in 1", "4 rows of 1024", "16 rows of 64"}, "more than the engine holds"
    # A busy machine makes steps longer; nothing makes them shorter.
    assert all(0.9 * STEP_S < step.seconds < 4 * STEP_S for step in steps)
    assert 0.8 * STEP_S < engine.cost.of(512, 0, 0, 0) < 4 * STEP_S


def test_advice_is_given_with_what_was_measured(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "trace.jsonl"
    write_trace(trace, [Workload(arrival_s=0.1 * at, max_tokens=4, output_tokens=4, own_tokens=9) for at in range(9)])
    assert main(["advise", str(trace), "--fit", server.url, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert f"steps of {server.url}; the fit is within" in found["notes"][-1]
    # A prompt and three decode steps.
    assert found["trials"][0]["long"]["e2e_mean_s"] > 3.5 * STEP_S


def test_an_engine_that_does_not_answer_is_named() -> None:
    with pytest.raises(EngineError, match="no engine answers"):
        calibrated(f"http://127.0.0.1:{free_port()}", preset("llama-8b-h100"))
