"""Where the time of a request went, asked of a launch: the parts add up to what its client has measured."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from quartet.cli.main import main
from tests.support.server import Server

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    flags = (
        "--simulated-worker",
        "--simulated-step-ms",
        "10",
        "--max-total-tokens",
        "8192",
        "--max-running-requests",
        "2",
    )
    with Server(*flags) as running:
        yield running


def asked(server: Server, request_id: str, tokens: int) -> float:
    """Send a request; returns the seconds it took."""
    begun = time.monotonic()
    body = {"prompt": f"{request_id} " * 50, "max_tokens": tokens, "ignore_eos": True, "rid": request_id}
    status, _ = server.post("/v1/completions", body)
    assert status == 200
    return time.monotonic() - begun


def told(server: Server, request_id: str) -> dict[str, Any]:
    status, timeline = server.get(f"/requests/{request_id}/timeline")
    assert status == 200
    (choice,) = timeline["choices"]
    assert sum(part["seconds"] for part in choice["parts"]) == pytest.approx(choice["total_s"], rel=0.01)
    assert isinstance(choice, dict)
    return choice


def named(choice: dict[str, Any]) -> dict[tuple[str, str], float]:
    return {(part["part"], part.get("after", "")): part["seconds"] for part in choice["parts"]}


def test_the_parts_add_up_to_what_the_client_measures(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    seconds: dict[str, float] = {}
    names = ["a", "b", "c"]
    threads = [
        threading.Thread(target=lambda name=name: seconds.update({name: asked(server, name, 60)})) for name in names
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in names:
        # The client's own time, and the frames on their way, are no part of it.
        assert told(server, name)["total_s"] == pytest.approx(seconds[name], abs=0.25)
    waited = [named(told(server, name)).get(("queued_for_slot", ""), 0.0) for name in names]
    assert sorted(waited)[:2] == [0.0, 0.0] and max(waited) > 0.2
    assert main(["why", names[waited.index(max(waited))], "--url", server.url]) == 0
    assert "it waited for a slot in the batch." in capsys.readouterr().out


def test_a_killed_worker_is_a_part(server: Server) -> None:
    thread = threading.Thread(target=lambda: asked(server, "killed", 200))
    thread.start()
    time.sleep(0.6)
    rows = server.get("/topology")[1]["processes"]
    os.kill(next(row["pid"] for row in rows if row["role"] == "worker"), signal.SIGKILL)
    thread.join()
    parts = named(told(server, "killed"))
    assert parts["queued_for_worker", "restart"] > 0.05 and ("prefill", "restart") in parts


def test_a_request_that_is_not_known(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["why", "never", "--url", server.url]) == 1
    shown = capsys.readouterr()
    assert shown.err.startswith("quartet: no request 'never' is live") and json.dumps(shown.out) == '""'
