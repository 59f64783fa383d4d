"""Every process dies between its start and its readiness, or by itself: the launch comes up and serves."""

from pathlib import Path

import pytest

from tests.support.server import Server

pytestmark = pytest.mark.e2e
ROLES = ("api", "tokenizer", "scheduler", "worker", "detok")
BODY = {"model": "smollm2", "prompt": "Count:", "max_tokens": 40, "temperature": 0}
FLAGS = ("--simulated-worker", "--simulated-step-ms", "3", "--restart-limit", "100")


def test_each_process_dies_twice_before_it_is_ready(tmp_path: Path) -> None:
    faults = [f"{role}.{point}=crash,once={tmp_path / role}-{point}" for role in ROLES for point in ("start", "ready")]
    faults.append(f"worker.phase.loading_weights=exit:137,once={tmp_path / 'loading'}")
    with Server(*FLAGS, env={"QUARTET_FAILPOINTS": ";".join(faults)}) as server:
        restarts = {row["role"]: row["restarts"] for row in server.topology().values()}
        assert restarts == {**dict.fromkeys(ROLES, 2), "worker": 3}
        status, body = server.post("/v1/completions", BODY)
        assert status == 200 and body["usage"]["completion_tokens"] == 40


@pytest.mark.parametrize(
    "action", ["exit:0", *(pytest.param(one, marks=pytest.mark.slow) for one in ("exit:137", "hang"))]
)
def test_an_end_by_itself_is_a_crash(tmp_path: Path, action: str) -> None:
    """An exit code of 0 that no one asked for, and that of the kernel's OOM killer, restart the process."""
    faults = [
        f"worker.before_send={action},armed={tmp_path / 'worker'}",
        f"detok.recv.Tokens={action},armed={tmp_path / 'detok'}",
        f"scheduler.recv.StepResult={action},armed={tmp_path / 'scheduler'}",
    ]
    flags = (*FLAGS, "--step-timeout", "2", "--hang-timeout", "1")
    with Server(*flags, env={"QUARTET_FAILPOINTS": ";".join(faults)}) as server:
        calm = server.post("/v1/completions", BODY)[1]["choices"][0]["text"]
        for role in ("worker", "detok", "scheduler"):
            (tmp_path / role).touch()
            status, body = server.post("/v1/completions", BODY)
            assert status == 200 and body["choices"][0]["text"] == calm, role
            assert server.topology()[f"{role}-0"]["restarts"] == 1, role
