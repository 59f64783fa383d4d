"""Time has one owner: a step within the worker's own deadline is progress, and one past it ends the worker."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.support.client import Answer, stream_completion
from tests.support.server import Server

pytestmark = pytest.mark.e2e
BODIES: list[dict[str, Any]] = [
    {"model": "smollm2", "prompt": f"Step {i}:", "max_tokens": 60, "temperature": 0} for i in range(5)
]


async def streams(server: Server) -> list[Answer]:
    answers = await asyncio.gather(*(stream_completion(server.url, body) for body in BODIES))
    assert all(answer.error is None and answer.is_done and answer.finish == "length" for answer in answers)
    return answers


def launch(fault: str, once: Path, *flags: str) -> Server:
    faults = f"worker.mid_step={fault},nth=20,once={once}"
    return Server("--simulated-worker", "--simulated-step-ms", "3", *flags, env={"QUARTET_FAILPOINTS": faults})


async def test_a_step_that_hangs_ends_its_worker_and_no_request(tmp_path: Path) -> None:
    with launch("hang", tmp_path / "once", "--step-timeout", "2") as server:
        shaken = await streams(server)
        assert server.topology()["worker-0"]["restarts"] == 1
        calm = await streams(server)
        assert [answer.text for answer in shaken] == [answer.text for answer in calm]


@pytest.mark.slow
async def test_a_step_of_many_seconds_is_waited_for(tmp_path: Path) -> None:
    with launch("delay:28", tmp_path / "once") as server:
        await streams(server)
        assert server.topology()["worker-0"]["restarts"] == 0
        assert 'quartet_api_replays_total{model_name="smollm2",process="api-0"} 0.0' in server.get("/metrics")[1]
