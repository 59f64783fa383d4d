"""What a server-sent event costs: the whole launch with a simulated worker, and a cheap client in a process of its own.

    python -m benchmarks.serving.http_overhead [streams] [tokens per stream] [path]

Prints one JSON line: events per second as the client saw them, and CPU per event of each process.
"""

import json
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

from benchmarks.serving.overhead_client import cpu_seconds

CLIENT = Path(__file__).with_name("sse_client.py")


def start_server(streams: int, tokens: int) -> tuple["subprocess.Popen[str]", int]:
    """Start a launch; returns it and its port."""
    flags = ["--simulated-worker", "--max-running-requests", str(streams)]
    flags += ["--max-total-tokens", str(streams * (tokens + 128)), "--port", "0"]
    server = subprocess.Popen([sys.executable, "-m", "quartet.cli", "serve", *flags], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    for line in server.stdout:
        if found := re.search(r"ready at http://[^:]+:(\d+)", line):
            return server, int(found[1])
    raise SystemExit("the server did not start")


def main(arguments: list[str]) -> int:
    """Run server and client; print the result."""
    streams, tokens = int((arguments or ["256"])[0]), int((arguments[1:] or ["500"])[0])
    path = (arguments[2:] or ["/v1/chat/completions"])[0]
    server, port = start_server(streams, tokens)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/topology") as answer:
            pids = {row["role"]: row["pid"] for row in json.load(answer)["processes"]}
        command = [sys.executable, str(CLIENT), "--port", str(port), "--streams", str(streams), "--path", path]
        subprocess.run([*command, "--max-tokens", "32"], stdout=subprocess.DEVNULL, check=True)
        before = {role: cpu_seconds(pid) for role, pid in pids.items()}
        run = subprocess.run([*command, "--max-tokens", str(tokens)], stdout=subprocess.PIPE, text=True, check=True)
        result = json.loads(run.stdout.strip().splitlines()[-1])
        result["cpu_us_per_event"] = {
            role: round((cpu_seconds(pid) - before[role]) / result["events"] * 1e6, 2) for role, pid in pids.items()
        }
        print(json.dumps(result), flush=True)
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(10)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
