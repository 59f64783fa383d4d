"""OpenAI's and Anthropic's own clients, unmodified, against real processes: tests/clients with the simulated worker.

`make test-clients` runs them against a model, too, and every other client.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.run import HERE, QUIET, SCRIPT_FLAGS, write_shared
from tests.support.server import Server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("script")
    write_shared(folder)
    with Server(*SCRIPT_FLAGS, "--simulated-script", str(folder / "script.json")) as running:
        yield running


@pytest.mark.e2e
@pytest.mark.parametrize("client", ["openai", "anthropic"])
def test_every_check_of_a_client_passes(client: str, server: Server) -> None:
    program = str(Path(HERE, f"check_{client}.py"))
    finished = subprocess.run(
        [sys.executable, program, "--url", server.url], env=QUIET, capture_output=True, text=True, timeout=100
    )
    report = json.loads(finished.stdout.splitlines()[-1])
    assert len(report["checks"]) >= 8
    assert not [row for row in report["checks"] if row["error"]], finished.stderr[-3000:]
