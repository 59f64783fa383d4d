"""What an operator sees of faults: frames dropped by reason in every process, restarts, how long a recovery took."""

from collections.abc import Iterator

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


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server("--simulated-worker") as it:
        yield it


def samples(server: Server, name: str) -> dict[tuple[str, ...], float]:
    """Return the values of a metric by those of its labels, in the order of their names."""
    families = text_string_to_metric_families(server.get("/metrics")[1])
    found = [sample for family in families for sample in family.samples if sample.name == name]
    return {tuple(value for _, value in sorted(sample.labels.items())): sample.value for sample in found}


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
