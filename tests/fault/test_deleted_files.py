"""The files of the run directory are deleted while streams run, as by a cleaner of temporary files."""

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.client import Answer, stream_completion
from tests.support.server import Server

pytestmark = pytest.mark.e2e
SIMULATED = ("--simulated-worker", "--simulated-step-ms", "5")
BODIES: list[dict[str, Any]] = [
    {"model": "smollm2", "prompt": f"Tell me about number {i}.", "max_tokens": 300, "temperature": 0} for i in range(4)
]


def delete_sockets(run_dir: Path) -> None:
    for path in run_dir.glob("*.sock"):
        path.unlink()


def delete_all(run_dir: Path) -> None:
    shutil.rmtree(run_dir)


async def texts(server: Server, on_event: Any = None) -> list[str]:
    first = stream_completion(server.url, BODIES[0], on_event)
    answers = await asyncio.gather(first, *(stream_completion(server.url, body) for body in BODIES[1:]))
    assert all(answer.is_done and answer.finish == "length" and answer.error is None for answer in answers)
    return [answer.text for answer in answers]


ALL = ("detok-0", "scheduler-0", "worker-0", "tokenizer-0")


@pytest.mark.parametrize(
    ("delete", "names"),
    [
        (delete_sockets, ("scheduler-0",)),
        pytest.param(delete_sockets, ALL, marks=pytest.mark.slow),
        pytest.param(delete_all, ALL, marks=pytest.mark.slow),
    ],
)
async def test_streams_go_on_and_a_restart_recovers(delete: Callable[[Path], None], names: tuple[str, ...]) -> None:
    with Server(*SIMULATED) as server:
        calm = await texts(server)
        (run_dir,) = server.base.iterdir()
        for name in names:

            async def delete_and_kill(answer: Answer, name: str = name) -> None:
                if answer.events == 30:
                    delete(run_dir)
                    server.kill(name)

            assert await texts(server, delete_and_kill) == calm
            server.wait_until(lambda: server.get("/ready")[0] == 200)
            assert server.post("/v1/completions", {**BODIES[0], "max_tokens": 3})[0] == 200
        assert len(list(run_dir.glob("*.sock"))) == len(server.topology())
        server.process.terminate()
        assert await asyncio.to_thread(server.process.wait, 20) == 0
        assert server.leftovers() == []
