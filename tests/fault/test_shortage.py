"""A supervisor that is short of descriptors for a while starts a dead process as soon as it can."""

import resource

import pytest

from tests.support.server import Server

pytestmark = pytest.mark.e2e


def test_a_process_that_cannot_be_started_is_tried_again() -> None:
    with Server("--simulated-worker") as server:
        limits = resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (5, limits[1]))
        server.kill("tokenizer-0")
        server.wait_until(lambda: any("tokenizer-0 cannot be started: Too many open files" in x for x in server.output))
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, limits)
        server.wait_until(lambda: server.get("/ready")[0] == 200)
