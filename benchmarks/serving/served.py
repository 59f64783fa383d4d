"""`quartet serve` as a child process, for benchmarks that measure over HTTP."""

import re
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

READY = re.compile(r"ready at (http://\S+)/v1")
ANSWER_LIMIT_S, END_LIMIT_S = 10.0, 20.0


@contextmanager
def served(*flags: str) -> Iterator[str]:
    """Start a server on a free port and yield its URL when it is ready; end it on the way out.

    Raises RuntimeError, with its last lines, if it ends before.
    """
    command = [sys.executable, "-m", "quartet.cli.main", "serve", "--port", "0", *flags]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        url = _wait_until_ready(server)
        # Nothing else reads the pipe, and a full one would block the server.
        threading.Thread(target=_drain, args=(server,), daemon=True).start()
        yield url
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(END_LIMIT_S)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _wait_until_ready(server: "subprocess.Popen[str]") -> str:
    assert server.stdout is not None
    lines = []
    for line in server.stdout:
        if found := READY.search(line):
            return found[1]
        lines.append(line)
    raise RuntimeError("the server did not start:\n" + "".join(lines[-30:]))


def _drain(server: "subprocess.Popen[str]") -> None:
    assert server.stdout is not None
    for _ in server.stdout:
        pass


def get(url: str) -> bytes:
    """Return the body of a GET; raises URLError for any status but 200."""
    with urllib.request.urlopen(url, timeout=ANSWER_LIMIT_S) as answer:
        return bytes(answer.read())
