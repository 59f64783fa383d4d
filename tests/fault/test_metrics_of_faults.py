"""What an operator sees of faults: frames dropped by reason in every process, restarts, how long a recovery took, what
systemd is told, and that docs/operations.md is true."""

import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq
from prometheus_client.parser import text_string_to_metric_families

from quartet.wire.codec import Encoder, Source
from quartet.wire.frames import Drained
from quartet.wire.ids import Epoch, Role
from tests.support.server import Server

pytestmark = pytest.mark.e2e
ALIEN = Encoder(Source(Role.API, 0, Epoch(1)), boot_id=5).encode(Drained())
BAD = {"short": b"x", "magic": b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".ljust(64), "boot": ALIEN}


PAGE = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()


@pytest.fixture(scope="module")
def manager() -> Iterator[socket.socket]:
    """The socket of a service manager."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("")
        sock.settimeout(20)
        yield sock


@pytest.fixture(scope="module")
def server(manager: socket.socket) -> Iterator[Server]:
    address = manager.getsockname().decode().replace("\0", "@")
    with Server("--simulated-worker", env={"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "2000000"}) as it:
        yield it


def heard(manager: socket.socket, wanted: str) -> str:
    """Return the next message to the service manager that begins so."""
    while not (message := manager.recv(1000).decode()).startswith(wanted):
        pass
    return message


def samples(server: Server, name: str) -> dict[tuple[str, ...], float]:
    """Return the values of a metric by those of its labels but the model, in the order of their names."""
    families = text_string_to_metric_families(server.get("/metrics")[1])
    found = [sample for family in families for sample in family.samples if sample.name == name]
    return {
        tuple(value for name, value in sorted(sample.labels.items()) if name != "model_name"): sample.value
        for sample in found
    }


def test_bad_frames_are_counted_by_reason_in_every_process(server: Server) -> None:
    with zmq.Context() as context:
        for path in server.base.rglob("*.sock"):
            with context.socket(zmq.PUSH) as sender:
                sender.setsockopt(zmq.LINGER, 5000)
                sender.connect(f"ipc://{path}")
                for data in BAD.values():
                    sender.send(data)
    expected = {(name, reason): 1.0 for name in server.topology() for reason in BAD}
    server.wait_until(lambda: expected.items() <= samples(server, "quartet_frames_dropped_total").items())
    assert server.post("/v1/completions", {"prompt": "x", "max_tokens": 2})[0] == 200
    assert {row["restarts"] for row in server.topology().values()} == {0}


def test_a_restart_and_its_time_are_shown(server: Server) -> None:
    server.kill("detok-0")
    server.wait_until(lambda: samples(server, "quartet_process_last_recovery_seconds")["0", "detok"] > 0)
    assert samples(server, "quartet_process_restarts_total")["0", "detok"] == 1
    assert 0 < server.topology()["detok-0"]["last_recovery_s"] < 30
    assert server.topology()["worker-0"]["last_recovery_s"] == 0


def test_every_metric_that_the_page_names_exists(server: Server) -> None:
    server.post("/v1/completions", {"prompt": []})
    text = server.get("/metrics")[1]
    named = set(re.findall(r"`(quartet_\w+)[{`]", PAGE))
    assert len(named) > 8 and not [name for name in sorted(named) if f"\n{name}{{" not in text]


def test_a_service_manager_is_told(server: Server, manager: socket.socket) -> None:
    assert heard(manager, "READY=1") == f"READY=1\nSTATUS=ready at {server.url}/v1"
    heard(manager, "WATCHDOG=1")
    server.process.send_signal(signal.SIGTERM)
    heard(manager, "STOPPING=1")
    assert server.process.wait(20) == 0
