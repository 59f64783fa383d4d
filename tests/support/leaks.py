"""The leak oracle of a launch: after a run everything is as it was before, whatever died meanwhile."""

import time
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.support.server import Server

MUST_BE_ZERO = (
    "quartet_api_live_requests",
    "quartet_kv_used_tokens",
    "quartet_num_running_reqs",
    "quartet_num_queue_reqs",
    "quartet_num_grammar_queue_reqs",
    "quartet_detok_streams",
)
SETTLE_S = 20.0
SPARE_DESCRIPTORS = 4
"""What the event loop or a connection that is being closed may hold at the moment of the look."""


@dataclass
class Held:
    """What one process holds."""

    descriptors: int
    threads: int
    rss_bytes: int


def held(pid: int) -> Held:
    """Return what a process holds."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    descriptors = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return Held(descriptors, int(status["Threads"]), int(status["VmRSS"].split()[0]) * 1024)


def metrics(server: Server) -> dict[str, float]:
    """Return every metric, summed over its labels."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(server.get("/metrics")[1]):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found


class LeakOracle:
    """Compares a launch at rest with itself, after a warm-up: processes, descriptors, threads, sockets, metrics."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.restarts = self._restarts()
        self._count = len(server.processes())
        self._leftovers = self._names()
        self._before = {name: held(int(row["pid"])) for name, row in server.topology().items()}
        self._supervisor = held(server.process.pid)

    def _restarts(self) -> dict[str, int]:
        return {name: int(row["restarts"]) for name, row in self._server.topology().items()}

    def _names(self) -> list[str]:
        return sorted(Path(path).name for path in self._server.leftovers())

    def restarts_since(self) -> dict[str, int]:
        """Return how often each process has been restarted since the oracle was made, without those that never were."""
        now = self._restarts()
        return {name: count - self.restarts[name] for name, count in now.items() if count != self.restarts[name]}

    def leaks(self) -> list[str]:
        """Return what is still held that was not before, after a time to settle."""
        deadline = time.monotonic() + SETTLE_S
        while (found := self._look()) and time.monotonic() < deadline:
            time.sleep(0.2)
        return found

    def _look(self) -> list[str]:
        if not self._server.is_complete():
            return ["a process is not ready"]
        found = [
            f"{name} is {value:g}" for name, value in metrics(self._server).items() if name in MUST_BE_ZERO and value
        ]
        if len(self._server.processes()) != self._count:
            found.append(f"{len(self._server.processes())} processes instead of {self._count}")
        if self._names() != self._leftovers:
            found.append(f"the run directory holds {self._names()} instead of {self._leftovers}")
        now = {name: held(int(row["pid"])) for name, row in self._server.topology().items()}
        for name, before in [*self._before.items(), ("supervisor", self._supervisor)]:
            after = held(self._server.process.pid) if name == "supervisor" else now[name]
            if after.descriptors > before.descriptors + SPARE_DESCRIPTORS:
                found.append(f"{name} holds {after.descriptors} descriptors instead of {before.descriptors}")
            if after.threads > before.threads:
                found.append(f"{name} has {after.threads} threads instead of {before.threads}")
        return found
