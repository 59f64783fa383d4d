"""A real launch for end-to-end and fault tests: `quartet serve` as a child, its processes by role, what it leaves."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

READY = re.compile(r"ready at (http://\S+)/v1")
START_LIMIT_S = 60.0


class Server:
    """One launch. Use as a context manager; leaving it kills what is left.

    Args:
        flags: of `quartet serve`.
        env: variables to add, or all variables if `only_env`.
        sink: descriptor that takes the place of standard output and error; by default they are read into `output`.
        options: for Popen.
    """

    def __init__(
        self,
        *flags: str,
        env: dict[str, str] | None = None,
        only_env: bool = False,
        sink: int | None = None,
        **options: Any,
    ) -> None:
        self.base = Path(tempfile.mkdtemp(prefix="qt"))
        self.output: list[str] = []
        # Without output the address must be known beforehand.
        port = 0 if sink is None else free_port()
        command = [
            sys.executable,
            "-m",
            "quartet.cli.main",
            "serve",
            "--port",
            str(port),
            "--run-dir",
            str(self.base),
            *flags,
        ]
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE if sink is None else sink,
            stderr=subprocess.STDOUT,
            text=True,
            # The same processes on a machine with many cores.
            env={**({} if only_env else os.environ), "QUARTET_TOKENIZER_PROCS": "1", **(env or {})},
            **options,
        )
        self.url = f"http://127.0.0.1:{port}" if port else ""
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read if sink is None else self._poll, daemon=True)
        self._reader.start()

    def _poll(self) -> None:
        while self.process.poll() is None and not self._ready.is_set():
            try:
                if self.get("/ready")[0] == 200:
                    self._ready.set()
            except OSError:
                time.sleep(0.05)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output.append(line.rstrip())
            if found := READY.search(line):
                self.url = found[1]
                self._ready.set()
        self._ready.set()

    def __enter__(self) -> "Server":
        if not self._ready.wait(START_LIMIT_S) or not self.url:
            self.process.kill()
            raise AssertionError("the server did not start:\n" + "\n".join(self.output[-30:]))
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join(5)
        if self.process.stdout is not None:
            self.process.stdout.close()

    def get(self, path: str) -> tuple[int, Any]:
        """Return status and JSON (or text) of a GET."""
        return self._answer(urllib.request.Request(self.url + path), 10)

    def post(self, path: str, body: dict[str, Any], timeout_s: float = 60.0) -> tuple[int, Any]:
        """Return status and JSON (or text) of a POST."""
        headers = {"content-type": "application/json"}
        return self._answer(urllib.request.Request(self.url + path, json.dumps(body).encode(), headers), timeout_s)

    def _answer(self, request: urllib.request.Request, timeout_s: float) -> tuple[int, Any]:
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as response:
                body, status = response.read().decode(), response.status
        except urllib.error.HTTPError as error:
            with error:
                body, status = error.read().decode(), error.code
        try:
            return status, json.loads(body)
        except ValueError:
            return status, body

    def topology(self) -> dict[str, dict[str, Any]]:
        """Return the process table by `role-rank`."""
        status, body = self.get("/topology")
        assert status == 200
        return {f"{row['role']}-{row['rank']}": row for row in body["processes"]}

    def pid(self, name: str) -> int:
        """Return the pid of a process, e.g. `worker-0`."""
        return int(self.topology()[name]["pid"])

    def is_complete(self) -> bool:
        """Return whether the service is ready and every process, a standby included, is."""
        return self.get("/ready")[0] == 200 and all(row["state"] == "ready" for row in self.topology().values())

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to a process of the launch."""
        os.kill(self.pid(name), number)

    def wait_until(self, predicate: Any, limit_s: float = 20.0) -> None:
        """Poll until `predicate()` holds."""
        deadline = time.monotonic() + limit_s
        while not predicate():
            if time.monotonic() > deadline:
                raise AssertionError("the condition never held; output of the server:\n" + "\n".join(self.output[-20:]))
            time.sleep(0.05)

    def processes(self) -> list[int]:
        """Return every pid that belongs to this launch, found from outside: by its run directory or parent."""
        mine = {self.process.pid}
        table: dict[int, int] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                except OSError:
                    continue
                if fields[0] != "Z":
                    table[int(entry.name)] = int(fields[1])
        grew = True
        while grew:
            grew = False
            for pid, parent in table.items():
                if parent in mine and pid not in mine:
                    mine.add(pid)
                    grew = True
        return sorted(mine & table.keys())

    def leftovers(self) -> list[str]:
        """Return run directories and sockets that are still there."""
        return [str(path) for path in self.base.rglob("*")]


def free_port() -> int:
    """Return a port that is free at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def alive(pids: list[int]) -> list[int]:
    """Return those of `pids` that still run."""
    running = []
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            continue
        if state != "Z":
            running.append(pid)
    return running
